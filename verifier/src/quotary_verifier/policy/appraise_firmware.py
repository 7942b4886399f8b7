# SPDX-License-Identifier: Apache-2.0
"""Holds a replayed firmware log against the rules on Secure Boot, on what was started and on what loaders read.

An event's type and labels are whatever the writer of the log says (docs/spec/boot-logs.md). So in a PCR that a rule
speaks of *every* event has to be accepted for what its digest shows, and nothing is passed over for what it is called.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.logs.banks import HASHES
from quotary_verifier.logs.tcg import Event, ReplayedLog
from quotary_verifier.logs.tcg_boot import SEPARATORS, read_boot
from quotary_verifier.logs.tcg_loaders import LoaderEvent, read_loader_events
from quotary_verifier.logs.tcg_secureboot import SecureBoot, read_secure_boot
from quotary_verifier.logs.tcg_types import EV_SEPARATOR, IMAGE_TYPES, Coverage, Tolerance
from quotary_verifier.logs.uefi import file_names, parse_image_load
from quotary_verifier.policy.findings import (
    Finding,
    PlatformEvidence,
    Severity,
    limited,
    listed,
    shown,
)
from quotary_verifier.policy.model import PlatformRules
from quotary_verifier.policy.names import authority_name, entry_name, is_authority
from quotary_verifier.policy.patterns import Pattern
from quotary_verifier.policy.rules import BootRules, SecureBootRules
from quotary_verifier.wire.attestation import BOOT_LOG_FIRMWARE
from quotary_verifier.wire.bindings import ZERO

_SECURE_BOOT_PCR: Final = 7
_LOADER_PCR: Final = 4
_UKI_PCR: Final = 11
_DEBUG: Final = "UEFI Debug Mode"
"""What firmware with its debugger on measures into PCR 7 (PFP 1.06 section 3.3.4.8), some with a zero behind it."""
_MAX_ACTION: Final = 256
_MAX_TEXTS: Final = 256 * 1024
"""Characters of different texts in the loader PCRs that are held against patterns; GRUB's are some thousands."""
_SECTION: Final = re.compile(r"\.[a-z0-9]{1,8}")
"""The name of a section of a unified kernel image: it only says that the section follows."""


def appraise_firmware(
    rules: PlatformRules, tolerate: Collection[str], evidence: PlatformEvidence, used: list[str]
) -> Iterator[Finding]:
    """Yield every departure from `rules.secure_boot` and `rules.boot`; `used` gets the tolerances that were needed."""
    accepted = frozenset(Tolerance(name) for name in tolerate)
    if rules.secure_boot is not None:
        yield from limited("platform.secure_boot", _secure_boot(rules.secure_boot, accepted, evidence, used))
    if rules.boot is not None and rules.boot.applications is not None:
        found = _applications(rules.boot.applications, accepted, evidence, used)
        yield from limited("platform.boot.applications", found)
    if rules.boot is not None and (rules.boot.files is not None or rules.boot.command_lines is not None):
        yield from limited("platform.boot.loader", _loader(rules.boot, evidence))


def _unmeasured(rule: str, pcr: int, what: str, evidence: PlatformEvidence) -> Iterator[Finding]:
    """Yield what keeps a rule on a PCR of the firmware from being judged: it is zero, which no log can mend, or moving,
    or the log is missing."""
    if evidence.pcrs[pcr] == ZERO:
        yield Finding(rule, f"PCR {pcr} is zero, so {what} was never measured", pcr=pcr, found=ZERO.hex())
    elif pcr in evidence.moving:
        why = f"PCR {pcr} is extended by this origin with every commit or measurement, so that no log explains it"
        yield Finding(rule, why, Severity.COULD_NOT, pcr=pcr)
    elif evidence.firmware is None:
        yield _no_log(rule, what, evidence)


def _no_log(rule: str, what: str, evidence: PlatformEvidence) -> Finding:
    why = evidence.missing.get(BOOT_LOG_FIRMWARE, "it did not come")
    return Finding(rule, f"{what} is known from the firmware's log only: {why}", Severity.COULD_NOT)


def _secure_boot(
    rules: SecureBootRules, tolerate: Collection[Tolerance], evidence: PlatformEvidence, used: list[str]
) -> Iterator[Finding]:
    rule = "platform.secure_boot"
    blocked = list(_unmeasured(rule, _SECURE_BOOT_PCR, "the Secure Boot state", evidence))
    if blocked or evidence.firmware is None:
        yield from blocked
        return
    try:
        state = read_secure_boot(evidence.firmware, tolerate=tolerate)
    except (EvidenceError, MalformedError) as error:
        yield Finding(
            f"{rule}.state", f"the Secure Boot state cannot be relied on: {error}", pcr=_SECURE_BOOT_PCR
        )
        return
    used += [f"firmware log: {tolerance.value}" for tolerance in state.tolerances]
    if rules.enabled and not state.enabled:
        yield Finding(
            f"{rule}.state", "PCR 7 says that Secure Boot is off", pcr=_SECURE_BOOT_PCR, found="off"
        )
    if rules.enabled and _is_debugged(evidence.firmware):
        why = f"PCR 7 says '{_DEBUG}': in that mode Secure Boot holds nothing back"
        yield Finding(f"{rule}.state", why, pcr=_SECURE_BOOT_PCR, found=_DEBUG)
    yield from _databases(rules, state)
    yield from _authorities(rules, state)


def _is_debugged(log: ReplayedLog) -> bool:
    """Tell whether PCR 7 was extended with the firmware's remark on its debugger, by the digest: the log may call that
    event anything, an authority for one."""
    remarks = {HASHES[log.bank](text).digest() for text in (_DEBUG.encode(), _DEBUG.encode() + b"\0")}
    return any(event.digest in remarks for event in log.of(_SECURE_BOOT_PCR))


def _databases(rules: SecureBootRules, state: SecureBoot) -> Iterator[Finding]:
    for name, entries, allowed in (
        ("pk", state.pk, rules.pk),
        ("kek", state.kek, rules.kek),
        ("db", state.db, rules.db),
    ):
        if allowed is None:
            continue
        for found in map(entry_name, entries):
            if found not in allowed:
                why = f"{_LABELS[name]} has the entry {found}, which the policy does not allow"
                yield Finding(
                    f"platform.secure_boot.{name}",
                    f"PCR 7: {why} (allowed: {listed(allowed)})",
                    pcr=_SECURE_BOOT_PCR,
                    path=_LABELS[name],
                    found=found,
                    allowed=tuple(sorted(allowed)),
                )
    for missing in sorted(rules.dbx - {entry_name(entry) for entry in state.dbx}):
        why = f"PCR 7: dbx lacks the entry {missing}, so this firmware accepts what should be refused"
        rule = "platform.secure_boot.dbx"
        yield Finding(rule, why, pcr=_SECURE_BOOT_PCR, path="dbx", allowed=(missing,))


_LABELS: Final = {"pk": "PK", "kek": "KEK", "db": "db"}


def _authorities(rules: SecureBootRules, state: SecureBoot) -> Iterator[Finding]:
    allowed, rule = rules.authorities, "platform.secure_boot.authorities"
    if allowed is None:
        return
    late = [authority for authority in state.late_authorities if is_authority(authority)]
    if state.enabled and not late:
        yield Finding(rule, "PCR 7 does not show who vouched for the boot loader", pcr=_SECURE_BOOT_PCR)
    for authority in (*filter(is_authority, state.authorities), *late):
        found = authority_name(authority)
        if found not in allowed:
            yield Finding(
                rule,
                f"PCR 7, event {authority.number}: an image was accepted for {found}, which the policy does not"
                f" allow (allowed: {listed(allowed)})",
                pcr=_SECURE_BOOT_PCR,
                event=authority.number,
                path=None if authority.variable is None else shown(authority.variable.name),
                found=found,
                allowed=tuple(sorted(allowed)),
            )


def _applications(
    allowed: frozenset[bytes], tolerate: Collection[Tolerance], evidence: PlatformEvidence, used: list[str]
) -> Iterator[Finding]:
    """Yield what is wrong with the order, and each event of PCR 4 that is neither an allowed image nor a remark."""
    rule = "platform.boot.applications"
    blocked = list(_unmeasured(rule, _LOADER_PCR, "what the firmware started", evidence))
    log = evidence.firmware
    if blocked or log is None:
        yield from blocked
        return
    try:
        used += [
            f"firmware log: {tolerance.value}" for tolerance in read_boot(log, tolerate=tolerate).tolerances
        ]
    except EvidenceError as error:
        yield Finding("platform.boot.order", f"the firmware's log is not of a boot as it should be: {error}")
    values = tuple(sorted(item.hex() for item in allowed))
    for event in log.of(_LOADER_PCR):
        if event.digest not in allowed and not _is_remark(event):
            yield _application(rule, event, values)


def _is_remark(event: Event) -> bool:
    """Tell whether an event of PCR 4 started nothing: a separator by its digest, or a text that its digest covers. An
    image is neither, so that none passes for one, whatever its event is called."""
    if event.untrusted_type in IMAGE_TYPES or event.coverage is not Coverage.DATA or event.covered is None:
        return False
    if event.untrusted_type == EV_SEPARATOR:
        return event.covered in SEPARATORS
    text = event.covered.removesuffix(b"\0")
    return len(text) <= _MAX_ACTION and text.isascii() and text.decode("ascii").isprintable()


def _application(rule: str, event: Event, allowed: tuple[str, ...]) -> Finding:
    path = None
    if event.untrusted_type in IMAGE_TYPES:
        try:
            path = shown(file_names(parse_image_load(event.untrusted_data).device_path)) or None
        except MalformedError:
            path = None
    called = "" if path is None else f", which the log calls {path}"
    what = (
        "an image" if event.untrusted_type in IMAGE_TYPES else "something that the log does not call an image"
    )
    return Finding(
        rule,
        f"PCR 4, event {event.number}: {what} with digest {event.digest.hex()}{called}, was started, which the"
        f" policy does not allow (allowed: {listed(allowed)})",
        pcr=_LOADER_PCR,
        event=event.number,
        path=path,
        found=event.digest.hex(),
        allowed=allowed,
    )


def _loader(rules: BootRules, evidence: PlatformEvidence) -> Iterator[Finding]:
    """Yield each event of the loader PCRs that is neither an allowed file nor a text that fits a pattern."""
    log, rule = evidence.firmware, "platform.boot.loader"
    if log is None:
        yield _no_log(rule, "what boot loaders read", evidence)
        return
    for pcr in sorted(rules.pcrs):
        why = _unexplained(log, pcr, evidence)
        if why:
            yield Finding(
                rule, f"PCR {pcr} {why}, so what boot loaders read is not known", Severity.COULD_NOT, pcr
            )
    lines = rules.command_lines
    read = {event.number: event for event in read_loader_events(log) if event.register in rules.pcrs}
    texts = [event for event in read.values() if event.text is not None]
    if lines is not None and not texts:
        where = ", ".join(map(str, sorted(rules.pcrs)))
        why = f"the log shows no command line in PCR {where}; name the PCRs that this boot loader uses"
        yield Finding(rule, why, Severity.COULD_NOT)
    # The kernel's stub measures again what the loader measured, without its text: the same digest is the same text.
    accepted = _fitting(texts, lines or ()) | (rules.files or frozenset())
    for event in log.events:
        if event.register in rules.pcrs and event.digest not in accepted and not _is_section(event):
            yield _loaded(rule, event, read.get(event.number))


def _fitting(texts: Iterable[LoaderEvent], lines: Collection[Pattern]) -> frozenset[bytes]:
    """Return the digests of the texts that fit a pattern; none that stands behind more text than a boot can have, since
    who writes the log must not choose how long this takes."""
    left, fits = _MAX_TEXTS, {}
    for event in texts:
        text = event.text or ""
        if event.digest not in fits:
            left -= len(text)
            fits[event.digest] = left >= 0 and any(line.fits(text) for line in lines)
    return frozenset([digest for digest, fit in fits.items() if fit])


def _unexplained(log: ReplayedLog, pcr: int, evidence: PlatformEvidence) -> str:
    if pcr in evidence.moving:
        return "is extended by this origin with every commit or measurement"
    if pcr in log.unconfirmed:
        return "holds something else than the log says"
    if pcr not in log.values and evidence.pcrs[pcr] != ZERO:
        return f"is {evidence.pcrs[pcr].hex()} and the log has no event of it"
    return ""


def _is_section(event: Event) -> bool:
    return (
        event.register == _UKI_PCR
        and event.coverage is Coverage.NAME
        and event.covered is not None
        and _SECTION.fullmatch(event.covered.removesuffix(b"\0").decode("ascii", "replace")) is not None
    )


def _loaded(rule: str, event: Event, read: LoaderEvent | None) -> Finding:
    where = f"PCR {event.register}, event {event.number}"
    text, label = (None, "") if read is None else (read.text, read.untrusted_label)
    if text is not None:
        message = f"{where}: the text '{shown(text)}' fits no command line of the policy"
    else:
        called = f", which the log calls '{shown(label)}'," if label else ""
        message = (
            f"{where}: a file with digest {event.digest.hex()}{called} is not one that the policy allows"
        )
    return Finding(
        rule,
        message,
        pcr=event.register,
        event=event.number,
        path=shown(label) or None,
        found=event.digest.hex() if text is None else shown(text),
    )
