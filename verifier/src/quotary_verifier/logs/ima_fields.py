# SPDX-License-Identifier: Apache-2.0
"""The fields of IMA records (Linux, security/integrity/ima/ima_template.c and ima_template_lib.c).

Template data is a sequence of fields, each behind its 32-bit length; only the template `ima` has fixed places. A
template is known by its name, or by a list of fields (`d-ng|n-ng|sig`), which a kernel command line can make.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.little import Reader
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_algorithms import ALG_SHA256, HASH_NAMES, digest

NAME_FIELD: Final = 255
"""Bytes of a file name in the template `ima`, which hashes it padded with zeros to one more."""

TEMPLATES: Final[Mapping[bytes, str]] = {
    b"ima": "d|n",
    b"ima-ng": "d-ng|n-ng",
    b"ima-sig": "d-ng|n-ng|sig",
    b"ima-ngv2": "d-ngv2|n-ng",
    b"ima-sigv2": "d-ngv2|n-ng|sig",
    b"ima-buf": "d-ng|n-ng|buf",
    b"ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
    b"evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}
"""The kernel's own templates and their fields."""

_DIGESTS: Final = frozenset({"d-ng", "d-ngv2", "d-modsig"})
_NAMES: Final = frozenset({"n-ng"})
_BINARY: Final = frozenset({"sig", "buf", "modsig", "evmsig"})
_OTHERS: Final = frozenset({"d", "n", "xattrnames", "xattrlengths", "xattrvalues", "iuid", "igid", "imode"})
_FIELDS: Final = _DIGESTS | _NAMES | _BINARY | _OTHERS

HASH_BYTES: Final[Mapping[str, int]] = {
    "md4": 16, "md5": 16, "sha1": 20, "rmd160": 20, "sha256": 32, "sha384": 48, "sha512": 64, "sha224": 28,
    "rmd128": 16, "rmd256": 32, "rmd320": 40, "wp256": 32, "wp384": 48, "wp512": 64, "tgr128": 16, "tgr160": 20,
    "tgr192": 24, "sm3": 32, "streebog256": 32, "streebog512": 64, "sha3-256": 32, "sha3-384": 48, "sha3-512": 64,
}  # fmt: skip
"""The kernel's names of file hashes (crypto/hash_info.c) and their sizes."""


@frozen
class FileDigest:
    """The digest of a measured file: `kind` is `ima` or `verity` (the file's fs-verity digest)."""

    algorithm: str
    value: bytes
    kind: str = "ima"


@frozen
class Fields:
    """A record's fields. `path` is whatever its writer chose, with no zero in it; escape it before it is shown.

    `signature` is the security.ima attribute, `buffer` what an `ima-buf` record measured (keys, command lines),
    `others` the remaining fields by their name.
    """

    digest: FileDigest | None = None
    path: bytes | None = None
    signature: bytes | None = None
    buffer: bytes | None = None
    others: tuple[tuple[str, bytes], ...] = ()


def fields_of(template: bytes) -> tuple[str, ...]:
    """Return the names of a template's fields.

    Raises:
        UnsupportedError: the template or one of its fields is not known.
    """
    listed: str = TEMPLATES.get(template, template.decode("ascii", "replace"))
    names = tuple(listed.split("|"))
    if not _FIELDS.issuperset(names):
        raise UnsupportedError(f"the IMA template {listed!r} is not known")
    return names


def decode(template: bytes, data: bytes) -> Fields:
    """Take the template data of a record apart. It is as true as the record: take one from a replayed log.

    Raises:
        MalformedError: the fields are not as the template says.
        UnsupportedError: the template is not known.
    """
    names = fields_of(template)
    if template == b"ima":
        return Fields(FileDigest("sha1", data[:20]), data[20:].rstrip(b"\0"))
    reader = Reader(data, "an IMA record")
    values = [(name, reader.take(reader.number(4))) for name in names]
    reader.end()
    found: dict[str, bytes] = {}
    for name, value in values:
        if name in found:
            raise MalformedError(f"an IMA record has the field {name} twice")
        found[name] = value
    main = found.pop("d-ng", None)
    second = found.pop("d-ngv2", None)
    path = found.pop("n-ng", None)
    return Fields(
        digest=_digest(main, with_kind=False) if main is not None else _second(second),
        path=None if path is None else _path(path),
        signature=found.pop("sig", b"") or None,
        buffer=found.pop("buf", None),
        others=tuple(found.items()),
    )


def _second(value: bytes | None) -> FileDigest | None:
    return None if value is None else _digest(value, with_kind=True)


def _digest(value: bytes, *, with_kind: bool) -> FileDigest:
    """Read `[<kind>:]<algorithm>:\\0<digest>`."""
    label, found, content = value.partition(b":\0")
    kind, colon, name = label.rpartition(b":")
    algorithm = name.decode("ascii", "replace")
    if not found or bool(colon) != with_kind or kind not in {b"", b"ima", b"verity"}:
        raise MalformedError("an IMA record's file digest is not well formed")
    if HASH_BYTES.get(algorithm) != len(content):
        raise MalformedError(f"an IMA record has a file digest of {len(content)} bytes by {algorithm!r}")
    return FileDigest(algorithm, content, kind.decode("ascii") or "ima")


def _path(value: bytes) -> bytes:
    path = value.removesuffix(b"\0")
    if path == value or b"\0" in path:
        raise MalformedError("an IMA record's file name does not end with its only zero")
    return path


def text_data(template: bytes, text: bytes) -> bytes:
    """Return the template data that a line of an ASCII log stands for.

    The kernel writes the fields with one space between them and spaces in names as underscores.

    Raises:
        MalformedError: the line has other fields than the template.
        UnsupportedError: the template is not known, or its bytes do not follow from the text.
    """
    names = fields_of(template)
    parts = text.split(b" ", len(names) - 1)
    if _BINARY.issuperset(names[len(parts) :]):
        parts += [b""] * (len(names) - len(parts))  # nothing stands where a signature is missing
    if len(parts) != len(names):
        raise MalformedError(f"it has {len(parts)} fields, and its template {len(names)}")
    if template == b"ima":
        if len(parts[1]) > NAME_FIELD:
            raise MalformedError("a file name is too long")
        return octets(parts[0]) + parts[1].ljust(NAME_FIELD + 1, b"\0")
    return b"".join([_field(name, part) for name, part in zip(names, parts, strict=True)])


def _field(name: str, text: bytes) -> bytes:
    if name in _NAMES:
        value = text + b"\0"
    elif name in _BINARY:
        value = octets(text)
    elif name in _DIGESTS:
        label, colon, value = text.rpartition(b":")
        value = label + colon + b"\0" + octets(value) if colon else b""
    else:
        raise UnsupportedError(f"the field {name} of an ASCII IMA log is not known")
    return len(value).to_bytes(4, "little") + value


def octets(text: bytes) -> bytes:
    """Return the bytes that lower-case hexadecimal stands for; MalformedError where it is anything else."""
    try:
        found = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise MalformedError("a field is not hexadecimal") from None
    if found.hex().encode() != text:
        raise MalformedError("a field is not hexadecimal in lower case without spaces")
    return found


def boot_aggregate(pcrs: Mapping[int, bytes], last: int) -> bytes:
    """Return what the kernel writes into the first record: the SHA-256 of PCR 0 to `last` of the SHA-256 bank.

    `last` is 7, or 9 since kernel 5.8.
    """
    return digest(ALG_SHA256, b"".join([pcrs[pcr] for pcr in range(last + 1)]))


def check_boot_aggregate(fields: Fields, pcrs: Mapping[int, bytes]) -> int:
    """Check that a `boot_aggregate` record speaks of this boot; return the last PCR that it covers, 7 or 9.

    Raises:
        EvidenceError: it fits neither.
        UnsupportedError: it is of another bank than SHA-256.
    """
    if fields.path != b"boot_aggregate" or fields.digest is None:
        raise EvidenceError("the first record of the IMA log is no boot aggregate")
    if fields.digest.algorithm != HASH_NAMES[ALG_SHA256]:
        raise UnsupportedError(f"the boot aggregate is of the {fields.digest.algorithm} bank")
    for last in (9, 7):
        if fields.digest.value == boot_aggregate(pcrs, last):
            return last
    raise EvidenceError("the boot aggregate is not that of the quoted PCRs 0-7 or 0-9")
