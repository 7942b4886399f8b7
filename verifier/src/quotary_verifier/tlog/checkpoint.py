# SPDX-License-Identifier: Apache-2.0
"""Checkpoints (C2SP tlog-checkpoint v1.0.0): the note text that states a log's origin, size and root.

::

    <origin>
    <size, decimal without leading zeros>
    <base64 of the 32-byte root>

This project's checkpoints have no extension lines, because nothing audits them (design section 3); foreign
checkpoints may have some, and only a caller that asks for it gets them.
"""

from __future__ import annotations

from base64 import b64encode

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog.merkle import EMPTY_ROOT, HASH_SIZE, MAX_TREE_SIZE
from quotary_verifier.tlog.note import decode_base64
from quotary_verifier.wire.frozen import frozen


@frozen
class Checkpoint:
    """A log's head: origin, number of leaves, 32-byte root, and a foreign checkpoint's extension lines."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> bytes:
        """The note text, each line with its newline. Raises MalformedError for what none can state."""
        lines = (self.origin, str(self.size), b64encode(self.root).decode(), *self.extensions)
        if any(not line or "\n" in line for line in lines):
            raise MalformedError("no line of a checkpoint is empty or has a newline in it")
        if not 0 <= self.size <= MAX_TREE_SIZE or len(self.root) != HASH_SIZE:
            raise MalformedError("a checkpoint has a size of at most 2^63-1 and a root of 32 bytes")
        return "".join([f"{line}\n" for line in lines]).encode()


def parse_checkpoint(text: bytes, *, origin: str | None = None, allow_extensions: bool = False) -> Checkpoint:
    """Parse a note text as a checkpoint; `origin`, where given, is the one it must state.

    Raises MalformedError for any other form, including extension lines unless `allow_extensions`;
    EvidenceError for another origin, or an empty tree whose root is not SHA-256 of nothing.
    """
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise MalformedError("a checkpoint is utf-8") from error
    if lines.pop() != "" or len(lines) < 3 or not all(lines):
        raise MalformedError("a checkpoint has at least three lines, none empty, each with its newline")
    if len(lines) > 3 and not allow_extensions:
        raise MalformedError("the checkpoint has extension lines")
    checkpoint = Checkpoint(lines[0], _parse_size(lines[1]), _parse_root(lines[2]), tuple(lines[3:]))
    if origin is not None and checkpoint.origin != origin:
        raise EvidenceError(f"the checkpoint is of {checkpoint.origin}, not of {origin}")
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        raise EvidenceError("the checkpoint of an empty tree does not state the root of one")
    return checkpoint


def _parse_size(line: str) -> int:
    """Parse a tree size: ASCII digits, no sign, no leading zero, at most 2^63-1."""
    if len(line) > 19 or not (line.isascii() and line.isdigit()) or (line[0] == "0" and line != "0"):
        raise MalformedError("a tree size is a decimal number without sign or leading zeros")
    size = int(line)
    if size > MAX_TREE_SIZE:
        raise MalformedError("a tree size is at most 2^63-1")
    return size


def _parse_root(line: str) -> bytes:
    """Parse a root: the canonical base64 of 32 bytes."""
    root = decode_base64(line)
    if len(root) != HASH_SIZE:
        raise MalformedError(f"a root hash has 32 bytes, this one has {len(root)}")
    return root
