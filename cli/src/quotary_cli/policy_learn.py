# SPDX-License-Identifier: Apache-2.0
"""`attest policy learn`: a policy from good boots."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from quotary_cli.bootchoice import choose
from quotary_cli.enrolment import FILE, json_option, write_file
from quotary_cli.evidence import EVIDENCE, Verified, logs_option, read_evidence
from quotary_cli.learnima import Ran, ran
from quotary_cli.learning import GoodBoot, Kind, kinds_of
from quotary_cli.learntext import (
    MIN_CERTAIN,
    ListFile,
    Models,
    counted,
    models_of,
    models_text,
    platform_text,
)
from quotary_cli.moments import parse_time
from quotary_cli.output import ExitCode, Failure, clean, note, print_json
from quotary_cli.policyfile import read_bytes
from quotary_cli.tomltext import remark, string, table
from quotary_verifier import Policy, PolicyError, Step
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.policy.findings import Finding, Severity
from quotary_verifier.policy.load import SCHEMA as POLICY_SCHEMA
from quotary_verifier.policy.load import load_policy
from quotary_verifier.wire.bindings import ZERO

SCHEMA = "quotary-policy-learn/v1"
_BOOT_PCRS: Final = (0, 4, 7)
_LEARNED: Final = ("platform", "reference")
_AGGREGATE: Final = "platform.ima.aggregate"
_SHOWN: Final = 5
_SOFTWARE: Final = "--software-tpm accepts it, for tests and demonstrations only"


@click.command()
@click.argument("evidence", nargs=-1, required=True, type=EVIDENCE, metavar="EVIDENCE...")
@click.option("--base", type=FILE, help="A policy that says whom to trust, without rules on platforms.")
@click.option("--pin", "pins", multiple=True, metavar="ORIGIN", help="Trust this origin. May be given again.")
@click.option("--software-tpm", is_flag=True, help="With --pin: accept software TPMs.")
@logs_option
@click.option("--at", metavar="TIME", help="Verify the evidence as of this time (default: now).")
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the policy; a list of files is written beside it.",
)
@json_option
def learn(
    evidence: tuple[Path, ...],
    base: Path | None,
    pins: tuple[str, ...],
    software_tpm: bool,
    log_places: tuple[Path, ...],
    at: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Make a policy of good boots, so that it accepts the next boot of these hosts and nothing else.

    EVIDENCE is attestations (files, folders, archives) of one boot or several of one host or several. All must verify:
    nothing is learned from what does not. What was the same each time is fixed, what differed stands in the policy
    with the reason. Two boots of each host tell what varies; one does not.
    """
    text = _base_text(base, pins, software=software_tpm)
    trust, moment = _trust(text, base), parse_time(at)
    hints = {Step.TPM_KIND: _SOFTWARE} if pins else {}
    found = read_evidence(evidence, log_places, trust, moment, quiet=as_json, choose=choose, hints=hints)
    models = {} if trust.models else models_of(one.evidence for one in found)
    learned = _learn(text, _boots(found), models, out, moment)
    if learned.files is not None:
        write_file(out.with_name(learned.files.name), learned.listed)
    write_file(out, learned.text.encode())
    _tell(learned)
    if as_json:
        print_json(_as_json(learned, out))


@dataclass(frozen=True, slots=True)
class Learned:
    """A policy that accepts all it was learned from, and what it was made of."""

    text: str
    boots: tuple[GoodBoot, ...]
    kinds: tuple[Kind, ...]
    ran: Ran | None
    files: ListFile | None
    listed: bytes
    models: tuple[str, ...]


def _base_text(base: Path | None, pins: tuple[str, ...], *, software: bool) -> str:
    if (base is None) == (not pins):
        raise Failure(
            "--base or --pin must say whom to trust, and not both",
            code=ExitCode.USAGE,
            hint="evidence of a host that nobody vouches for shows nothing",
        )
    if base is not None:
        if software:
            raise Failure(
                "--software-tpm goes with --pin; with --base, the base says it", code=ExitCode.USAGE
            )
        return read_bytes(base).decode("utf-8", "replace")
    text = f"schema = {string(POLICY_SCHEMA)}\n\n"
    text += "\n".join(table("[[pin]]", [("origin", string(pin))]) for pin in pins)
    return text + ("\n" + table("[tpm]", [("software", "true")]) if software else "")


def _trust(text: str, base: Path | None) -> Policy:
    name = "--pin" if base is None else str(base)
    try:
        taken = [key for key in _LEARNED if key in tomllib.loads(text)]
        # lists belong to rules on platforms, so a base that may be used names none
        policy = None if taken else load_policy(text.encode())
    except (PolicyError, tomllib.TOMLDecodeError) as error:
        raise Failure(f"{name}: {error}", code=ExitCode.USAGE) from None
    if policy is None:
        raise Failure(
            f"{name}: it has rules on platforms already ({', '.join(taken)})",
            code=ExitCode.USAGE,
            hint="learn with a base that only says whom to trust, and compare both policies afterwards",
        )
    return policy


def _boots(found: Iterable[Verified]) -> tuple[GoodBoot, ...]:
    """Return the last evidence of each boot; a boot whose firmware measured nothing teaches nothing."""
    last: dict[tuple[str, int, int], GoodBoot] = {}
    for one in found:
        evidence, clock = one.evidence, one.evidence.clock
        for pcr in _BOOT_PCRS:
            if evidence.pcrs[pcr] == ZERO:
                raise Failure(
                    f"{one.name}: PCR {pcr} is zero, so this boot was never measured",
                    code=ExitCode.REJECTED,
                    hint="attest policy new --template model-only makes a policy that asks for no platform",
                )
        if one.boot not in last or last[one.boot].evidence.clock.clock <= clock.clock:
            last[one.boot] = GoodBoot(one.name, evidence)
    return tuple(last[key] for key in sorted(last))


def _learn(text: str, boots: tuple[GoodBoot, ...], models: Models, out: Path, at: int) -> Learned:
    """Learn, and hold every boot against the result: what is written accepts all that it was learned from."""
    kinds, measured = kinds_of(boots), _ran(boots)
    listed = b"" if measured is None else measured.listed()
    files = None if measured is None else ListFile(_list_name(out), hashlib.sha256(listed).digest())
    head = f"{text.rstrip()}\n\n" + remark(f"Learned from {_seen(boots)}.")
    tail = models_text(models, len(boots))
    departures: list[tuple[GoodBoot, Finding]] = []
    for aggregate in (True, False):
        whole = f"{head}\n{platform_text(kinds, measured, files, aggregate)}\n{tail}"
        departures = _departures(whole, {} if files is None else {files.sha256: listed}, boots, at)
        if not departures:
            names = tuple(f"{name} sha256:{weights.hex()}" for name, weights in models)
            return Learned(whole, boots, kinds, measured, files, listed, names)
        if any(finding.rule != _AGGREGATE for _, finding in departures):
            break
    boot, finding = departures[0]
    raise Failure(
        f"no policy was learned that accepts {boot.name} itself: {finding.message}",
        code=ExitCode.NOT_CHECKED,
        hint="learn without this boot, or write the policy by hand: attest policy new --template strict",
    )


def _departures(
    text: str, lists: dict[bytes, bytes], boots: Iterable[GoodBoot], at: int
) -> list[tuple[GoodBoot, Finding]]:
    try:
        policy = load_policy(text.encode(), lists)
    except PolicyError as error:
        raise Failure(
            f"what was learned is too large for a policy: {error}", code=ExitCode.NOT_CHECKED
        ) from None
    return [
        (boot, finding)
        for boot in boots
        for finding in appraise_platform(policy, boot.evidence, at).findings
        if finding.severity is not Severity.WARN
    ]


def _ran(boots: Sequence[GoodBoot]) -> Ran | None:
    """Learn what ran, where every boot shows it."""
    return ran(boots) if all(boot.evidence.ima is not None for boot in boots) else None


def _list_name(out: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", out.stem)[:80].lstrip(".+-")
    return f"{stem or 'policy'}.files.sha256sum"


def _seen(boots: Sequence[GoodBoot]) -> str:
    hosts = len({boot.evidence.origin for boot in boots})
    return f"{counted(len(boots), 'boot')} of {counted(hosts, 'host')}"


def _tell(learned: Learned) -> None:
    """Sum up on stderr."""
    note(f"learned from {_seen(learned.boots)}, all verified")
    for kind in learned.kinds:
        fixed = [f"PCR {', '.join(map(str, sorted(kind.pcrs)))} by value"] if kind.pcrs else []
        fixed += [_counted(kind)] if kind.boot is not None else []
        fixed += ["Secure Boot by its keys"] if kind.secure_boot is not None else []
        note(f"{kind.name}: fixed are {'; '.join(fixed) or 'no values'}")
        for pcr, why in sorted(kind.varies.items()):
            note(f"{kind.name}: PCR {pcr} is left open: {why}")
        for said in kind.remarks:
            note(f"{kind.name}: {said}")
    if learned.ran is None:
        note("the files that ran are left open: not every boot came with its IMA log")
    else:
        _tell_files(learned.ran)
    single = sorted(
        origin for origin in _origins(learned.boots) if _origins(learned.boots).count(origin) < MIN_CERTAIN
    )
    if single:
        note(
            f"one boot shows nothing of what varies; learn from a second one of {', '.join(single[:_SHOWN])}"
        )


def _origins(boots: Iterable[GoodBoot]) -> list[str]:
    return [boot.evidence.origin for boot in boots]


def _counted(kind: Kind) -> str:
    boot = kind.boot
    parts = []
    if boot is not None and boot.applications is not None:
        parts.append(counted(len(boot.applications), "boot image"))
    if boot is not None and boot.files is not None:
        parts.append(counted(len(boot.files), "loaded file"))
    if boot is not None and boot.command_lines is not None:
        parts.append(counted(len(boot.command_lines), "command line"))
    return ", ".join(parts)


def _tell_files(found: Ran) -> None:
    contents = counted(sum(map(len, found.files.values())), "content")
    note(f"{contents} of {counted(len(found.files), 'file')} may run")
    for glob, why in list(found.ignore.items())[:_SHOWN]:
        note(f"not checked: {glob} ({why})")
    if len(found.ignore) > _SHOWN:
        note(f"not checked: {len(found.ignore) - _SHOWN} more paths; the policy names them all")
    for path in found.unstable[:_SHOWN]:
        note(f"had several contents: {clean(path.decode('utf-8', 'backslashreplace'))}")
    if found.violations:
        note(f"{found.violations} measurements were not possible; the policy accepts that")


def _as_json(learned: Learned, out: Path) -> dict[str, Any]:
    files, found = learned.files, learned.ran
    return {
        "schema": SCHEMA,
        "policy": str(out),
        "sha256": hashlib.sha256(learned.text.encode()).hexdigest(),
        "lists": [] if files is None else [{"file": files.name, "sha256": files.sha256.hex()}],
        "boots": [{"name": boot.name, "origin": boot.evidence.origin} for boot in learned.boots],
        "kinds": [
            {
                "name": kind.name,
                "hosts": list(kind.hosts),
                "firmware": kind.firmware,
                "fixed_pcrs": sorted(kind.pcrs),
                "open_pcrs": {str(pcr): why for pcr, why in sorted(kind.varies.items())},
                "remarks": list(kind.remarks),
            }
            for kind in learned.kinds
        ],
        "files": None if found is None else sum(map(len, found.files.values())),
        "ignored": {} if found is None else dict(found.ignore),
        "violations": 0 if found is None else found.violations,
        "models": list(learned.models),
    }
