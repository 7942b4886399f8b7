# SPDX-License-Identifier: Apache-2.0
"""Lists of file digests that stand beside a policy, in the format of `sha256sum` (GNU coreutils).

    <hexadecimal digest>  <path>        two spaces, or a space and `*`
    \\<digest>  <path>                   a backslash first: `\\\\`, `\\n` and `\\r` in the path stand for what they say
    # remark

Digests are SHA-256, SHA-384 or SHA-512, told by their length. A path is bytes, as the kernel has it.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from typing import Final

from quotary_verifier.errors import MalformedError, PolicyError
from quotary_verifier.wire.frozen import frozen

MAX_LIST: Final = 64 * 1024 * 1024
"""Bytes of one list."""
MAX_LISTED: Final = 1 << 20
"""Lines of one list."""
_SIZES: Final = (64, 96, 128)
_PLAIN: Final = 66
_ESCAPE: Final = re.compile(rb"\\(.?)", re.DOTALL)
_ESCAPED: Final = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")


@frozen
class ListName:
    """A list that a policy names: the file beside the policy, and the SHA-256 of its bytes."""

    file: str
    sha256: bytes


def check_file(text: str) -> str:
    """Return the plain name of a file beside the policy; MalformedError for anything that could leave its folder."""
    if not _FILE.fullmatch(text):
        raise MalformedError("a list is a file beside the policy, named with letters, digits and . _ + -")
    return text


def parse_list(data: bytes, name: str) -> dict[bytes, list[bytes]]:
    """Return digest → paths, as a list has them.

    Raises:
        PolicyError: it is too long, or a line is of another form.
    """
    if len(data) > MAX_LIST:
        raise PolicyError(f"the list {name} has {len(data)} bytes, {MAX_LIST} are allowed")
    found: dict[bytes, list[bytes]] = {}
    lines = data.split(b"\n")
    if lines[-1] == b"":
        del lines[-1]
    if len(lines) > MAX_LISTED:
        raise PolicyError(f"the list {name} has more than {MAX_LISTED} lines")
    for number, line in enumerate(lines, start=1):
        if line.startswith(b"#"):
            continue
        try:
            digest, path = _line(line)
        except ValueError:
            raise PolicyError(f"the list {name}: line {number} is none that sha256sum writes") from None
        found.setdefault(digest, []).append(path)
    return found


def _line(line: bytes) -> tuple[bytes, bytes]:
    """Read one line; ValueError if it is none."""
    if line[64:66] == b"  " and len(line) > _PLAIN and b"\0" not in line:  # nearly every line is of this form
        text, path = line[:64], line[_PLAIN:]
    else:
        text, path = _other_line(line)
    if text != text.lower():
        raise ValueError
    return unhexlify(text), path


def _other_line(line: bytes) -> tuple[bytes, bytes]:
    """Return digest and path of a line with another digest, a `*` or escapes in it."""
    escaped = line.startswith(b"\\")
    text, _, path = line[escaped:].partition(b" ")
    if len(text) not in _SIZES or path[:1] not in {b" ", b"*"} or len(path) < 2 or b"\0" in path:
        raise ValueError
    return text, _ESCAPE.sub(_unescape, path[1:]) if escaped else path[1:]


def _unescape(found: re.Match[bytes]) -> bytes:
    if found[1] not in _ESCAPED:
        raise ValueError
    return _ESCAPED[found[1]]
