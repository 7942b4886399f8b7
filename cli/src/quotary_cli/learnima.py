# SPDX-License-Identifier: Apache-2.0
"""Makes an allow list of what ran in good boots, and finds the files whose content changes by itself.

A file that has another content in each boot, or several in one, cannot stand in an allow list. Where programs lie, it
is listed all the same with every content that was seen, and told; so is what has no absolute path, as keys that the
kernel took in and command lines of kernels that it started. Elsewhere its path is ignored: then nothing at that
path is checked, a program that is put there included, so the paths are as narrow as can be and each stands in the
policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from quotary_cli.bootsides import BOOT_AGGREGATE
from quotary_cli.learning import GoodBoot
from quotary_cli.output import ExitCode, Failure, clean
from quotary_verifier.errors import UnsupportedError
from quotary_verifier.logs.ima_fields import decode

PROGRAMS: Final = (
    *(b"/bin/", b"/boot/", b"/lib", b"/opt/", b"/sbin/", b"/usr/", b"/nix/", b"/snap/"),
    b"/memfd:",
)
"""Where programs lie, in memory too: nothing below is ever ignored."""
_LISTED: Final = frozenset({"sha256", "sha384", "sha512"})
_ESCAPES: Final = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))
_NARROW: Final = 3
"""Characters that a name's constant part must have, so that a glob in its folder is not of the whole folder's files."""

Contents = dict[bytes, set[bytes]]


@dataclass(frozen=True, slots=True)
class Ran:
    """What ran: path → digests, the paths to ignore with the reason of each, and what else a policy must say.

    `unstable` are paths of programs that had several contents. `templates` are those of the records, `violations`
    counts measurements that the kernel could not make.
    """

    files: Mapping[bytes, frozenset[bytes]]
    ignore: Mapping[str, str]
    unstable: tuple[bytes, ...]
    templates: frozenset[str]
    violations: int

    def listed(self) -> bytes:
        """Return the files with absolute paths in the format of `sha256sum`."""
        lines: list[bytes] = [
            line(digest, path)
            for path, digests in self.files.items()
            if path[:1] == b"/"
            for digest in digests
        ]
        lines.sort(key=path_of)
        return b"".join(lines)

    def named(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield digest and path of what has no absolute path, such as keys and command lines."""
        for path, digests in sorted(self.files.items()):
            if path[:1] != b"/":
                for digest in sorted(digests):
                    yield digest, path


def path_of(text: bytes) -> bytes:
    """Return the path in a line of a list, by which lists are sorted."""
    return text.partition(b" ")[2]


def line(digest: bytes, path: bytes) -> bytes:
    """Return a line of a list as `sha256sum` writes it."""
    escaped = path
    for plain, written in _ESCAPES:
        escaped = escaped.replace(plain, written)
    mark = b"\\" if escaped != path else b""
    return mark + digest.hex().encode() + b"  " + escaped + b"\n"


def ran(boots: Sequence[GoodBoot]) -> Ran:
    """Learn from boots that all have an IMA log.

    Raises:
        Failure: a record has a digest that no list can have.
    """
    templates: set[str] = set()
    violations = 0
    boots_of: dict[str, list[Contents]] = defaultdict(list)
    for boot in boots:
        contents, seen, unmeasured = _contents(boot)
        templates |= seen
        violations += unmeasured
        boots_of[boot.evidence.origin].append(contents)
    ignore: dict[str, str] = {}
    changing: set[bytes] = set()
    for origin in boots_of.values():
        found, paths = _changing(origin)
        ignore |= found
        changing |= paths
    files: Contents = defaultdict(set)
    for contents in (one for origin in boots_of.values() for one in origin):
        for path, digests in contents.items():
            files[path] |= digests
    unstable = tuple(sorted(path for path in changing if not _may_change(path)))
    kept = {path: frozenset(files[path]) for path in _kept(files, ignore)}
    return Ran(kept, dict(sorted(ignore.items())), unstable, frozenset(templates), violations)


def _contents(boot: GoodBoot) -> tuple[Contents, set[str], int]:
    """Return what one boot ran, by path; the templates of its records; and how many measurements were not possible."""
    found: Contents = defaultdict(set)
    templates: set[str] = set()
    violations = 0
    log = boot.evidence.ima
    for record in () if log is None else log.records():
        if record.violation:
            violations += 1
            continue
        try:
            fields = decode(record.template, record.data)
        except UnsupportedError as error:
            raise Failure(f"{boot.name}: {error}", code=ExitCode.NOT_CHECKED) from None
        path, digest = fields.path, fields.digest
        if path == BOOT_AGGREGATE:
            continue
        if path is None or digest is None or digest.kind != "ima" or digest.algorithm not in _LISTED:
            what = "no digest" if digest is None else f"a {digest.kind} digest by {digest.algorithm}"
            raise Failure(
                f"{boot.name}: record {record.number} of the IMA log has {what}, which no allow list can have",
                code=ExitCode.NOT_CHECKED,
                hint="let the host measure with SHA-256: ima_hash=sha256 on the kernel's command line",
            )
        templates.add(record.template.decode("ascii", "replace"))
        found[path].add(digest.value)
    return found, templates, violations


def _changing(boots: Sequence[Contents]) -> tuple[dict[str, str], set[bytes]]:
    """Find what changes by itself on one host: globs to ignore with their reason, and the paths that have changed."""
    ignore: dict[str, str] = {}
    changing = {path for one in boots for path, digests in one.items() if len(digests) > 1}
    for path in {path for one in boots for path in one}:
        seen = [frozenset(one[path]) for one in boots if path in one]
        if len(set(seen)) > 1:
            changing.add(path)
    for path in sorted(changing):
        glob = _literal(path)
        if glob is not None and _may_change(path):
            ignore[glob] = "its content changes by itself"
    for folder, names in _new_names(boots).items():
        glob = _pattern(folder, names)
        if glob is not None:
            ignore[glob] = (
                f"files with new names in each boot, as {clean(names[0].decode('utf-8', 'backslashreplace'))}"
            )
    return ignore, changing


def _may_change(path: bytes) -> bool:
    """Tell whether a file can change without harm: it has a place, and not one where programs lie."""
    return path[:1] == b"/" and not path.startswith(PROGRAMS)


def _new_names(boots: Sequence[Contents]) -> dict[bytes, list[bytes]]:
    """Return, for each folder in which every boot has files that no other boot has, the names of these files."""
    if len(boots) < 2:
        return {}
    found: dict[bytes, list[list[bytes]]] = defaultdict(list)
    for number, one in enumerate(boots):
        others = {path for place, other in enumerate(boots) if place != number for path in other}
        own: dict[bytes, list[bytes]] = defaultdict(list)
        for path in sorted(one.keys() - others):
            folder, _, name = path.rpartition(b"/")
            if _may_change(path):
                own[folder].append(name)
        for folder, names in own.items():
            found[folder].append(names)
    return {
        folder: [name for names in lists for name in names]
        for folder, lists in found.items()
        if len(lists) == len(boots)
    }


def _pattern(folder: bytes, names: Sequence[bytes]) -> str | None:
    """Return the narrowest glob with one `*` that fits new names in a folder; None if it would fit any name there."""
    head = _common(names)
    tail = _common([name[len(head) :][::-1] for name in names])[::-1]
    if len(head) + len(tail) < _NARROW:
        return None
    before, after = _literal(folder + b"/" + head), _literal(tail)
    return None if before is None or after is None else f"{before}*{after}"


def _common(names: Sequence[bytes]) -> bytes:
    """Return the longest beginning that all names have."""
    first, last = min(names), max(names)
    size = next(
        (at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[:size]


def _literal(path: bytes) -> str | None:
    """Return a path as a glob that fits it alone; None for one that no glob can name."""
    if b"*" in path:
        return None
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _kept(paths: Iterable[bytes], ignore: Iterable[str]) -> Iterator[bytes]:
    """Yield the paths that no glob fits."""
    whole = {glob.encode() for glob in ignore if "*" not in glob}
    parts = [glob.encode().partition(b"*")[::2] for glob in ignore if "*" in glob]
    for path in paths:
        if path not in whole and not any(_fits(path, head, tail) for head, tail in parts):
            yield path


def _fits(path: bytes, head: bytes, tail: bytes) -> bool:
    return len(path) >= len(head) + len(tail) and path.startswith(head) and path.endswith(tail)
