# SPDX-License-Identifier: Apache-2.0
"""Writes what was learned as TOML that people can read: each rule with the reason why it is there, or is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from quotary_cli.learnima import Ran
from quotary_cli.learning import Kind
from quotary_cli.tomltext import remark, string, strings, table
from quotary_verifier.logs.workload import TYPE_MODEL
from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.policy.rules import IMA_TEMPLATES, LOADER_PCRS, BootRules, SecureBootRules

Models = Mapping[tuple[str, bytes], int]
"""Name and weights of each model → in how many boots it could serve."""

MIN_CERTAIN = 2
"""Boots from which on something can be called stable."""


@dataclass(frozen=True, slots=True)
class ListFile:
    """A list that stands beside a policy: its name, and the SHA-256 of its bytes."""

    name: str
    sha256: bytes


def counted(number: int, noun: str) -> str:
    """Return a number with what it counts."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def platform_text(kinds: Sequence[Kind], ran: Ran | None, files: ListFile | None, aggregate: bool) -> str:
    """Return the tables `[platform]` and `[[reference]]`."""
    parts: list[str] = []
    if len(kinds) == 1:
        parts += _kind(kinds[0], "platform")
    if ran is not None and files is not None:
        parts += _ima(ran, files, aggregate)
    else:
        parts.append(
            remark("PCR 10 is not asked for, as not every boot came with its IMA log: any file may run")
        )
    if len(kinds) > 1:
        for kind in kinds:
            parts += _kind(kind, "reference")
    return "\n".join(parts)


def _kind(kind: Kind, prefix: str) -> Iterator[str]:
    """Yield the tables of one kind of host: those of `[platform]`, or of a `[[reference]]` with its name."""
    about = [f"learned from {counted(len(kind.boots), 'boot')} of {', '.join(kind.hosts)}"]
    if kind.firmware:
        about.append(f"firmware version: {kind.firmware}")
    about += kind.remarks
    entries = [("tolerate", strings(kind.tolerate))] if kind.tolerate else []
    if entries:
        about.append("tolerate: this firmware's log departs from the specification, and says so each time")
    if prefix == "reference":
        yield table("[[reference]]", [("name", string(kind.name)), *entries], remarks=about)
    elif entries:
        yield table("[platform]", entries, remarks=about)
    else:
        yield "".join(map(remark, about))
    yield _pcrs(kind, prefix)
    if kind.secure_boot is not None:
        yield _secure_boot(kind.secure_boot, prefix)
    if kind.boot is not None:
        yield _boot(kind.boot, prefix)


def _pcrs(kind: Kind, prefix: str) -> str:
    remarks = [f"PCR {pcr} is not fixed: {why}" for pcr, why in sorted(kind.varies.items())]
    times = (
        f"the same in all {len(kind.boots)} boots" if len(kind.boots) >= MIN_CERTAIN else "as in the one boot"
    )
    if not kind.pcrs:
        return "".join(map(remark, remarks))
    entries = [(str(pcr), strings([value.hex()])) for pcr, value in sorted(kind.pcrs.items())]
    return table(f"[{prefix}.pcrs]", entries, remarks=[*remarks, f"fixed: {times}"])


def _secure_boot(rules: SecureBootRules, prefix: str) -> str:
    entries = [("enabled", "true" if rules.enabled else "false")]
    for name in ("pk", "kek", "db", "authorities"):
        values = getattr(rules, name)
        if values is not None:
            entries.append((name, strings(values)))
    if rules.dbx:
        entries.append(("dbx", strings(rules.dbx)))
    remarks = [
        "in place of PCR 7: who may sign what boots; dbx may grow, and must have what every boot had",
    ]
    return table(f"[{prefix}.secure_boot]", entries, remarks=remarks)


def _boot(rules: BootRules, prefix: str) -> str:
    entries: list[tuple[str, str]] = []
    remarks = []
    if rules.applications is not None:
        remarks.append("in place of PCR 4: every image that was started, by its Authenticode digest")
        entries.append(("applications", strings(value.hex() for value in rules.applications)))
    if rules.files is not None:
        pcrs = ", ".join(map(str, sorted(rules.pcrs)))
        remarks.append(f"in place of PCR {pcrs}: what boot loaders read, and what they told the kernel")
        entries.append(("files", strings(value.hex() for value in rules.files)))
    if rules.command_lines is not None:
        remarks.append("command_lines are patterns: \\. is a dot, [0-9a-f]+ would be any hexadecimal number")
        entries.append(("command_lines", strings(line.text for line in rules.command_lines)))
    if rules.files is not None:
        entries.append(("pcrs", f"[{', '.join(map(str, sorted(rules.pcrs)))}]"))
        missing = ", ".join(map(str, sorted(LOADER_PCRS - rules.pcrs)))
        if missing:
            remarks.append(f"PCR {missing}: no log explains it, so nothing is asked of its events")
    return table(f"[{prefix}.boot]", entries, remarks=remarks)


def _ima(ran: Ran, files: ListFile, aggregate: bool) -> Iterator[str]:
    remarks = ["in place of PCR 10: the files that ran, by content and path"]
    entries: list[tuple[str, str]] = []
    if ran.ignore:
        remarks += [f"ignored: {glob} ({why})" for glob, why in ran.ignore.items()]
        remarks.append("at ignored paths nothing is checked, a program that is put there included")
        entries.append(("ignore", strings(ran.ignore)))
    for path in ran.unstable:
        remarks.append(
            f"had several contents, all of which are listed: {path.decode('utf-8', 'backslashreplace')}"
        )
    if ran.violations:
        remarks.append(
            f"the kernel could not measure {ran.violations} times, as files were written meanwhile"
        )
        entries.append(("violations", "true"))
    if not ran.templates <= IMA_TEMPLATES:
        entries.append(("templates", strings(ran.templates | IMA_TEMPLATES)))
    if not aggregate:
        remarks.append("the boot aggregate cannot be checked on this host, so it is not asked for")
        entries.append(("boot_aggregate", "false"))
    yield table("[platform.ima]", entries, remarks=remarks)
    yield table(
        "[[platform.ima.list]]",
        [("file", string(files.name)), ("sha256", string(files.sha256.hex()))],
        remarks=["stands beside this policy; sha256sum -c reads it, too"],
    )
    for digest, path in ran.named():
        name = {32: "sha256", 48: "sha384", 64: "sha512"}[len(digest)]
        named: list[tuple[str, str]] = [("digest", string(f"{name}:{digest.hex()}"))]
        with contextlib.suppress(
            UnicodeDecodeError
        ):  # a policy's texts are UTF-8: else the content alone is asked for
            named.append(("path", string(path.decode())))
        yield table("[[platform.ima.file]]", named)


def models_of(evidence: Iterable[PlatformEvidence]) -> Models:
    """Return the models that may have served, with the boots in which they could."""
    found: dict[tuple[str, bytes], set[tuple[str, int, int]]] = {}
    for one in evidence:
        log, boot = one.workload, (one.origin, one.clock.reset_count, one.clock.restart_count)
        for logged in () if log is None else log.current:
            event = logged.event
            if event is not None and event.type == TYPE_MODEL:
                found.setdefault((event.name, event.digest), set()).add(boot)
    return {key: len(boots) for key, boots in sorted(found.items())}


def models_text(models: Models, total: int) -> str:
    """Return the `[[model]]` tables."""
    parts = []
    for (name, weights), boots in models.items():
        said = f"could serve in {boots} of {counted(total, 'boot')}"
        entries = [("name", string(name)), ("weights", string(f"sha256:{weights.hex()}"))]
        parts.append(table("[[model]]", entries, remarks=[said]))
    return "\n".join(parts)
