# SPDX-License-Identifier: Apache-2.0
"""Reads the rules of a policy on logs, clocks and workload events from their tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from quotary_verifier.errors import MalformedError, PolicyError
from quotary_verifier.logs.ima_fields import TEMPLATES
from quotary_verifier.logs.ima_signature import PublicKey
from quotary_verifier.logs.tcg_types import Tolerance
from quotary_verifier.policy.lists import ListName, check_file, parse_list
from quotary_verifier.policy.model import PlatformRules
from quotary_verifier.policy.names import check_name
from quotary_verifier.policy.patterns import Pattern
from quotary_verifier.policy.rules import (
    FILE_PCRS,
    IMA_TEMPLATES,
    LINE_PCRS,
    LOADER_PCRS,
    RULES,
    AllowedEvent,
    BootRules,
    BootWindow,
    ClockRules,
    ImaRules,
    SecureBootRules,
    WorkloadRules,
)
from quotary_verifier.policy.table import Table, pcr_values, sha256_digest
from quotary_verifier.wire.names import check_origin

TOLERANCES: Final = frozenset(
    {
        Tolerance.NO_CALLING_ACTION,
        Tolerance.NO_EXIT_BOOT_SERVICES,
        Tolerance.FAILED_BOOT_ATTEMPTS,
        Tolerance.NO_SECURE_BOOT_STATE,
    }
)
"""Departures that a policy can accept in a firmware's log."""

_MAX_ENTRIES: Final = 1 << 20
"""Digests of all lists of one table."""
_MAX_GLOBS: Final = 1024
_MIN_RSA: Final = 2048
_FEW: Final = 4
_U32: Final = 1 << 32
_FILE_DIGESTS: Final = {"sha256": 32, "sha384": 48, "sha512": 64}
_LOADER_PCRS: Final = frozenset(range(8, 15)) | {5}

T = TypeVar("T")
Files = dict[bytes, Collection[bytes] | None]


def read_platform(table: Table, lists: Mapping[bytes, bytes]) -> PlatformRules:
    """Read a `[platform]` table, or a `[[reference]]` whose name was taken.

    Raises:
        PolicyError: something in it cannot be used, or a list that it names is not given.
    """
    rules = PlatformRules(
        pcrs=pcr_values(table.table("pcrs")),
        secure_boot=_optional(table, "secure_boot", _secure_boot),
        boot=_optional(table, "boot", _boot),
        ima=_optional(table, "ima", lambda inner: _ima(inner, lists)),
        clock=_optional(table, "clock", _clock),
        tolerate=frozenset(_among(table, "tolerate", TOLERANCES) or ()),
    )
    table.finish()
    return rules


def read_workload(table: Table) -> WorkloadRules | None:
    """Read what a `[workload]` table says of events; None where it says nothing."""
    types = table.texts("types")
    if types == []:
        table.fail("types", "allows no type")
    events = tuple(_event(item) for item in table.tables("event"))
    only = table.take("only_models", bool, False)
    if types is None and not events and not only:
        return None
    return WorkloadRules(None if types is None else frozenset(types), events, only)


def read_warnings(tables: Iterable[Table]) -> dict[str, int]:
    """Read the `[[warn]]` tables: the code of a rule → the time in seconds from which it counts."""
    found: dict[str, int] = {}
    for table in tables:
        rule = table.take("rule", str)
        if rule not in RULES:
            table.fail("rule", f"names no rule of a policy; there are {', '.join(_nearest(rule))}")
        if rule in found:
            table.fail("rule", "has a date already")
        found[rule] = table.moment("until")
        table.finish()
    return found


def _nearest(rule: str) -> list[str]:
    """Return the rules that begin as a code does that is none: as many of its words fit as fit any."""
    words = rule.split(".")
    for count in range(len(words), 0, -1):
        beginning = ".".join(words[:count])
        if found := [each for each in RULES if each == beginning or each.startswith(f"{beginning}.")]:
            return sorted(found)
    return sorted({each.partition(".")[0] for each in RULES})


def list_names(platforms: Iterable[Table]) -> tuple[ListName, ...]:
    """Return the lists that `[platform]` and `[[reference]]` tables name, each once."""
    found: dict[ListName, None] = {}
    for table in platforms:
        for item in table.table("ima").tables("list"):
            found[_list_name(item)] = None
    return tuple(found)


def _optional(table: Table, key: str, read: Callable[[Table], T]) -> T | None:
    """Read an inner table to its end, where there is one."""
    if key not in table.names():
        return None
    inner = table.table(key)
    value = read(inner)
    inner.finish()
    return value


def _among(table: Table, key: str, known: Iterable[str]) -> list[str] | None:
    names = table.texts(key)
    for name in names or ():
        if name not in known:
            table.fail(key, f"must be among {', '.join(sorted(known))}")
    return names


def _set(table: Table, key: str, read: Callable[[str], T]) -> frozenset[T] | None:
    values = table.texts(key)
    return None if values is None else frozenset(table.convert(key, value, read) for value in values)


def _secure_boot(table: Table) -> SecureBootRules:
    return SecureBootRules(
        enabled=table.take("enabled", bool, True),
        pk=_set(table, "pk", check_name),
        kek=_set(table, "kek", check_name),
        db=_set(table, "db", check_name),
        dbx=_set(table, "dbx", check_name) or frozenset(),
        authorities=_set(table, "authorities", check_name),
    )


def _boot(table: Table) -> BootRules:
    texts, files = table.texts("command_lines"), _set(table, "files", sha256_digest)
    lines = None if texts is None else tuple(table.convert("command_lines", text, Pattern) for text in texts)
    rules = BootRules(
        applications=_set(table, "applications", sha256_digest),
        files=files,
        command_lines=lines,
        pcrs=_loader_pcrs(table, lines is None, files is None),
    )
    if rules.applications is None and rules.files is None and rules.command_lines is None:
        table.fail("", "asks for nothing: it needs applications, files or command_lines")
    return rules


def _loader_pcrs(table: Table, no_lines: bool, no_files: bool) -> frozenset[int]:
    """Take the PCRs that must be explained; by default those that hold what there is a rule for."""
    pcrs = table.maybe("pcrs", list)
    if pcrs is None:
        return (
            LOADER_PCRS - (LINE_PCRS if no_lines else frozenset()) - (FILE_PCRS if no_files else frozenset())
        )
    if not pcrs or any(type(pcr) is not int or pcr not in _LOADER_PCRS for pcr in pcrs):
        table.fail("pcrs", f"must be among {', '.join(map(str, sorted(_LOADER_PCRS)))}")
    return frozenset(pcrs)


def _ima(table: Table, lists: Mapping[bytes, bytes]) -> ImaRules:
    templates = _among(table, "templates", {name.decode() for name in TEMPLATES if name != b"ima"})
    if templates == []:
        table.fail("templates", "allows no template")
    return ImaRules(
        files=_files(table, lists),
        ignore=_globs(table),
        keys=tuple(table.convert("keys", text, _key) for text in table.texts("keys") or ()),
        violations=table.take("violations", bool, False),
        templates=IMA_TEMPLATES if templates is None else frozenset(templates),
        boot_aggregate=table.take("boot_aggregate", bool, True),
    )


def _globs(table: Table) -> tuple[str, ...]:
    globs = table.texts("ignore") or []
    if len(globs) > _MAX_GLOBS:
        table.fail("ignore", f"has more than {_MAX_GLOBS} entries")
    for glob in globs:
        if not glob.strip("*/"):
            table.fail("ignore", "would leave out every file")
    return tuple(globs)


def _files(table: Table, lists: Mapping[bytes, bytes]) -> Files:
    """Put the files that are named one by one and those of lists together; without a path they may lie anywhere."""
    found: Files = {}
    for item in table.tables("file"):
        digest = item.convert("digest", item.take("digest", str), _file_digest)
        path = item.maybe("path", str)
        item.finish()
        _allow(found, digest, None if path is None else [path.encode()])
    named: set[bytes] = set()
    for item in table.tables("list"):
        bound = item.take("paths", bool, True)
        name = _list_name(item)
        if name.sha256 in named:
            table.fail("list", f"names {name.file} twice")
        named.add(name.sha256)
        for digest, paths in _given(item, name, lists).items():
            _allow(found, digest, _absolute(name, paths) if bound else None)
        if len(found) > _MAX_ENTRIES:
            table.fail("list", f"has more than {_MAX_ENTRIES} digests in all")
    return found


def _allow(found: Files, digest: bytes, paths: list[bytes] | None) -> None:
    """Add the paths at which a digest may lie. A few stay a tuple, which takes a quarter of a set's memory."""
    if paths is None:
        found[digest] = None
        return
    known = found.get(digest, ())
    if known is not None:
        every = (*known, *paths)
        found[digest] = every if len(every) <= _FEW else frozenset(every)


def _list_name(table: Table) -> ListName:
    """Take what names a list, and see that nothing else is in its table but `paths`."""
    name = ListName(
        table.convert("file", table.take("file", str), check_file),
        table.convert("sha256", table.take("sha256", str), sha256_digest),
    )
    table.take("paths", bool, True)
    table.finish()
    return name


def _given(table: Table, name: ListName, lists: Mapping[bytes, bytes]) -> dict[bytes, list[bytes]]:
    data = lists.get(name.sha256)
    if data is None:
        table.fail("file", f"{name.file} was not given; it must stand beside the policy")
    if hashlib.sha256(data).digest() != name.sha256:
        table.fail("file", f"{name.file} has other bytes than the policy says")
    return parse_list(data, name.file)


def _absolute(name: ListName, paths: list[bytes]) -> list[bytes]:
    for path in paths:
        if not path.startswith(b"/"):
            raise PolicyError(
                f"the list {name.file} has paths that do not begin at the root, as {path[:80]!r}; make it with"
                " absolute paths, or say paths = false"
            )
    return paths


def _file_digest(text: str) -> bytes:
    """Read the digest of a file: `sha256:`, `sha384:` or `sha512:` and lower-case hexadecimal."""
    name, _, value = text.rpartition(":")
    digest = bytes.fromhex(value)
    if digest.hex() != value or len(digest) != _FILE_DIGESTS.get(name or "sha256"):
        raise MalformedError(
            "a file's digest is sha256:, sha384: or sha512: and lower-case hexadecimal digits"
        )
    return digest


def _key(text: str) -> PublicKey:
    """Read a key in PEM, or that of a certificate."""
    data = text.encode()
    try:
        if b"BEGIN CERTIFICATE" in data:
            key = x509.load_pem_x509_certificate(data).public_key()
        else:
            key = serialization.load_pem_public_key(data)  # type: ignore[assignment]
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise MalformedError("it is neither a public key nor a certificate in PEM") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise MalformedError(
        f"a key for file signatures is RSA of {_MIN_RSA} bits or more, or on an elliptic curve"
    )


def _clock(table: Table) -> ClockRules:
    restarts = table.maybe("restarts", int)
    if restarts is not None and not 0 <= restarts < _U32:
        table.fail("restarts", "must be a number of restarts")
    windows = tuple(_window(item) for item in table.tables("boots"))
    if len({window.origin for window in windows}) != len(windows):
        table.fail("boots", "names one origin twice")
    if restarts is None and not windows:
        table.fail("", "asks for nothing: it needs restarts or boots")
    return ClockRules(restarts, windows)


def _window(table: Table) -> BootWindow:
    origin = table.convert("origin", table.take("origin", str), check_origin)
    first, last = table.take("first", int, 0), table.maybe("last", int)
    if not 0 <= first <= (first if last is None else last) < _U32:
        table.fail("first", "and last must be reset counts, in this order")
    table.finish()
    return BootWindow(origin, first, last)


def _event(table: Table) -> AllowedEvent:
    digest = table.maybe("digest", str)
    event = AllowedEvent(
        type=table.take("type", str),
        name=table.maybe("name", str),
        digest=None if digest is None else table.convert("digest", digest, sha256_digest),
    )
    table.finish()
    return event
