# SPDX-License-Identifier: Apache-2.0
"""`attest policy import`: lists of files that others made, as lists that a policy can name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from quotary_cli.enrolment import FILE, json_option, write_file
from quotary_cli.lazy import InOrder
from quotary_cli.learnima import line, path_of
from quotary_cli.output import ExitCode, Failure, note, print_json
from quotary_cli.policyfile import read_bytes
from quotary_cli.tomltext import remark, string, strings, table
from quotary_verifier import MalformedError, PolicyError
from quotary_verifier.policy.lists import MAX_LIST, check_file, parse_list

SCHEMA = "quotary-policy-import/v1"
_SIZES: Final = {64: "sha256", 96: "sha384", 128: "sha512"}
_HEX: Final = re.compile(r"[0-9a-f]+")
_LITERAL: Final = re.compile(r"\^?((?:[A-Za-z0-9_/@:,~ -]|\\[^A-Za-z0-9])+)(\.\*|\(/\.\*\)\?|)\$?")
_AGGREGATE: Final = "boot_aggregate"
_SHOWN: Final = 5

out_option = click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The list to write; it must stand beside the policy.",
)


@dataclass(slots=True)
class Imported:
    """What was read: lines of a list, files without an absolute path, globs, keys, and what could not be taken."""

    lines: set[bytes] = field(default_factory=set)
    named: list[tuple[str, str]] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@click.group(name="import", cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
def imports() -> None:
    """Make lists for policies of what others made.

    The list goes into a file beside the policy; the lines that the policy needs are printed.
    """


@imports.command(short_help="A list that sha256sum made.")
@click.argument("file", type=FILE)
@click.option("--prefix", help="Folder that paths which do not begin at the root lie in, as /usr/bin.")
@out_option
@json_option
def sha256sum(file: Path, prefix: str | None, out: Path, as_json: bool) -> None:
    """Take a list as sha256sum, sha384sum or sha512sum print it.

    IMA names files by their absolute paths, so the list must too; --prefix completes those that do not.
    """
    if prefix is not None and not prefix.startswith("/"):
        raise Failure("--prefix is an absolute path", code=ExitCode.USAGE)
    try:
        found = parse_list(read_bytes(file, MAX_LIST), str(file))
    except PolicyError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from None
    imported = Imported()
    for digest, paths in found.items():
        for path in paths:
            imported.lines.add(line(digest, _absolute(path, prefix)))
    _finish(imported, out, as_json=as_json)


def _absolute(path: bytes, prefix: str | None) -> bytes:
    if path.startswith(b"/"):
        return path
    if prefix is None:
        raise Failure(
            f"the path {path[:80].decode('utf-8', 'backslashreplace')} does not begin at the root",
            code=ExitCode.USAGE,
            hint="say with --prefix in which folder the list was made",
        )
    return prefix.rstrip("/").encode() + b"/" + path.removeprefix(b"./")


@imports.command(short_help="A runtime policy of Keylime.")
@click.argument("file", type=FILE)
@out_option
@json_option
def keylime(file: Path, out: Path, as_json: bool) -> None:
    """Take a runtime policy of Keylime (JSON): digests, excludes, keyrings, keys for file signatures.

    What has no counterpart (SHA-1 digests, excludes that are no plain path or path and `.*`) is told, and left out: the
    policy then accepts less than Keylime did.
    """
    try:
        value = json.loads(read_bytes(file, 4 * MAX_LIST))
        imported = _keylime(value)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise Failure(
            f"{file}: not a runtime policy of Keylime",
            code=ExitCode.USAGE,
            hint="keylime-policy makes one; an older allow list is imported by `attest policy import sha256sum`",
        ) from None
    _finish(imported, out, as_json=as_json)


def _keylime(value: dict[str, Any]) -> Imported:
    imported = Imported()
    weak = sum(
        _take_file(imported, path, digest) for path, digests in value["digests"].items() for digest in digests
    )
    if weak:
        imported.left.append(f"{weak} digests that are not SHA-256, SHA-384 or SHA-512")
    for exclude in value.get("excludes") or ():
        globs = globs_of(exclude)
        if exclude != _AGGREGATE and not globs:
            imported.left.append(f"the exclude {exclude}")
        imported.ignore += globs
    for name, digests in [*(value.get("keyrings") or {}).items(), *(value.get("ima-buf") or {}).items()]:
        imported.named += [(text, name) for text in map(_digest, digests) if text is not None]
    imported.keys += _keys(value.get("verification-keys"))
    return imported


def _take_file(imported: Imported, path: str, digest: str) -> bool:
    """Take a file in; return whether its digest is of a hash that no list can have.

    The boot aggregate is no file: a policy has a rule of its own for it, which follows the quoted PCRs.
    """
    text = _digest(digest)
    if path == _AGGREGATE:
        return False
    if text is None:
        return True
    if path.startswith("/"):
        imported.lines.add(line(bytes.fromhex(text), path.encode()))
    else:
        imported.named.append((text, path))
    return False


def _digest(text: str) -> str | None:
    return text if len(text) in _SIZES and _HEX.fullmatch(text) else None


def globs_of(pattern: str) -> tuple[str, ...]:
    """Return globs that fit what a regular expression does, for those that are a path, with `.*` or `(/.*)?` behind it.

    Keylime matches from the beginning and not to the end, so that a pattern without `$` also fits what is longer. For
    any other expression there are none: a glob that fits more would let files run that were checked before.
    """
    found = _LITERAL.fullmatch(pattern)
    if found is None or not found[1].startswith("/"):
        return ()
    path = re.sub(r"\\(.)", r"\1", found[1])
    if "*" in path or not path.strip("/"):
        return ()
    if not pattern.endswith("$") or found[2] == ".*":
        return (f"{path}*",)
    return (path, f"{path}/*") if found[2] else (path,)


def _keys(text: str | None) -> Iterator[str]:
    """Yield the keys for file signatures in PEM: Keylime has them as JSON in a string, in DER and base64."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_der_public_key,
    )

    for key in json.loads(text or "{}").get("pubkeys") or ():
        public = load_der_public_key(base64.b64decode(key, validate=True))
        yield public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _finish(imported: Imported, out: Path, *, as_json: bool) -> None:
    """Write the list and print what a policy needs of it."""
    try:
        check_file(out.name)
    except MalformedError as error:
        raise Failure(f"{out}: {error}", code=ExitCode.USAGE) from None
    lines = sorted(imported.lines, key=path_of)
    data = b"".join(lines)
    digest = hashlib.sha256(data).hexdigest()
    write_file(out, data)
    note(f"{len(imported.lines)} files in {out}")
    for left in imported.left[:_SHOWN]:
        note(f"left out: {left}")
    if len(imported.left) > _SHOWN:
        note(f"left out: {len(imported.left) - _SHOWN} more; they stand in what is printed")
    snippet = "\n".join(_snippet(imported, out.name, digest))
    if as_json:
        listed = {"file": out.name, "sha256": digest, "files": len(imported.lines)}
        print_json({"schema": SCHEMA, "list": listed, "left_out": imported.left, "toml": snippet})
        return
    click.echo(snippet, nl=False)


def _snippet(imported: Imported, name: str, digest: str) -> Iterator[str]:
    entries = []
    if imported.ignore:
        entries.append(("ignore", strings(set(imported.ignore))))
    if imported.keys:
        entries.append(("keys", "[" + ", ".join(f'"""\n{pem}"""' for pem in imported.keys) + "]"))
    if imported.left:
        yield "".join(map(remark, [f"left out: {left}" for left in imported.left]))
    if entries:
        yield table("[platform.ima]", entries)
    yield table("[[platform.ima.list]]", [("file", string(name)), ("sha256", string(digest))])
    yield from _named(imported.named)


def _named(files: Iterable[tuple[str, str]]) -> Iterator[str]:
    for digest, path in files:
        value = string(f"{_SIZES[len(digest)]}:{digest}")
        yield table("[[platform.ima.file]]", [("digest", value), ("path", string(path))])
