# SPDX-License-Identifier: Apache-2.0
"""Reports of audits that never were, for what shows them: few boots and many, clean and not, and hostile texts."""

from __future__ import annotations

from hashlib import sha256

from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.report import (
    AuditedBoot,
    AuditedBootLog,
    AuditedLog,
    AuditedModel,
    AuditedStart,
    AuditedStatement,
    AuditReport,
    MatchedRecords,
    Period,
    Span,
    Witnessing,
)

HOUR = 3_600_000
BEGIN = 1_790_000_000_000
ORIGIN = "gpu-07.example.net/" + "abcdefgh" * 4
UNKNOWABLE = (
    "that the host has no second log under another key",
    "what happened between the last commit of a boot and the next start",
    "that outputs without an attestation were not served",
)
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202eevil</title><style>*{}</style>"


def value(text: str) -> str:
    """A PCR value."""
    return sha256(text.encode()).hexdigest()


def span(first: int, last: int, start: int, hours: int) -> Span:
    """Commits with a hundred leaves each, from an hour on."""
    begin = BEGIN + start * HOUR
    return Span(
        first, last, 1 + first * 100, 1 + (last + 1) * 100, (0, hours * HOUR), (begin, begin + hours * HOUR)
    )


def boot(number: int, hours: int = 20, *, chain: str = "zero", gap: int = 4) -> AuditedBoot:
    """One boot of forty commits; boots follow each other with some hours between them."""
    log = AuditedBootLog("tcg", "replayed", value(f"log {number}"), 31_337, "")
    ima = AuditedBootLog(
        "ima", "missing", value(f"ima {number}"), 4_000_000, "the log does not have this blob"
    )
    return AuditedBoot(
        number,
        10 + number,
        0,
        span(number * 40, number * 40 + 39, number * (hours + gap), hours),
        chain,
        True,
        "2026.11",
        (log,) if number % 5 else (log, ima),
    )


def period(
    of: AuditedBoot,
    status: str = "accepted",
    models: tuple[str, ...] = ("llama-3.1-8b",),
    part: tuple[int, int] = (0, 40),
    found: tuple[tuple[str, str, str], ...] = (),
    kernel: str = "linux 6.1",
    ima: int = 0,
) -> Period:
    """A part of a boot's commits."""
    first, last = of.span.first_commit + part[0], of.span.first_commit + part[1] - 1
    assert of.span.time_ms is not None
    start, end = of.span.time_ms
    width = end - start
    whole = span(first, last, 0, 1)
    times = (start + width * part[0] // 40, start + width * part[1] // 40)
    return Period(
        of.number,
        Span(first, last, whole.first_leaf, whole.size, (0, HOUR), times),
        status,
        found,
        "hosts of 2026" if status != "rejected" else None,
        ((0, value("firmware")), (4, value(kernel)), (7, value("secure boot")), (10, value(f"ima {ima}"))),
        "",
        "Example CA",
        3,
        "vllm",
        tuple(AuditedModel(name, value(name), True) for name in models),
    )


def start_of(of: AuditedBoot, skipped: int = 0, history: tuple[int, int] | None = None) -> AuditedStart:
    """The start of the agent in a boot."""
    assert of.span.time_ms is not None
    return AuditedStart(
        of.span.first_commit,
        of.span.first_leaf,
        of.number,
        5 + of.number,
        skipped,
        of.span.time_ms[0],
        history,
    )


def report(
    boots: list[AuditedBoot],
    periods: list[Period],
    findings: tuple[Finding, ...] = (),
    *,
    complete: bool = True,
    records: MatchedRecords | None = None,
    witnesses: tuple[Witnessing, ...] = (),
    starts: tuple[AuditedStart, ...] | None = None,
    statements: tuple[AuditedStatement, ...] = (),
) -> AuditReport:
    """A report of these parts."""
    last = boots[-1].span
    log = AuditedLog(
        ORIGIN,
        "gpu-07.example.net",
        last.size,
        value("root"),
        last.size if complete else last.size + 4_000,
        last.last_commit + 1,
        BEGIN,
        "ECC P-256",
        True,
        None,
    )
    counts = tuple(
        (severity, count)
        for severity in Severity
        if (count := sum(finding.severity is severity for finding in findings))
    )
    return AuditReport(
        BEGIN // 1000 + 90 * 86400,
        value("policy"),
        complete,
        log,
        tuple(boots),
        tuple(map(start_of, boots)) if starts is None else starts,
        tuple(periods),
        statements,
        witnesses,
        records,
        findings,
        counts,
        UNKNOWABLE,
    )


def one_boot() -> AuditReport:
    """One boot, and nothing to say of it."""
    only = boot(0)
    return report([only], [period(only)])


def witnessed() -> AuditReport:
    """Three boots, two models, a swap, IMA values that move, statements and witnesses; all is well."""
    boots = [boot(number) for number in range(3)]
    periods = [
        *(period(boots[0], part=(10 * place, 10 * place + 10), ima=place) for place in range(4)),
        period(boots[1], part=(0, 15)),
        period(boots[1], models=("llama-3.1-8b", "qwen-3-32b"), part=(15, 20)),
        period(boots[1], models=("qwen-3-32b",), part=(20, 40)),
        period(boots[2], models=("qwen-3-32b",), kernel="linux 6.12"),
    ]
    seen = tuple(
        Witnessing(commit, commit * 100 + 101, BEGIN // 1000 + commit * 3600, ("witness.example.org",))
        for commit in (10, 60, 110)
    )
    said = (
        AuditedStatement(3, 1, BEGIN, "quotary-statement/v1\nservice /v1/chat/completions\n"),
        AuditedStatement(4005, 40, BEGIN + 24 * HOUR, "quotary-statement/v1\nservice /v1/chat/completions\n"),
    )
    return report(boots, periods, witnesses=seen, statements=said)


def rejected(count: int = 5) -> AuditReport:
    """Boots of which one ran another kernel, with a gap, a missing log, and records that the log does not have."""
    boots = [boot(number, chain="gap" if number == 2 else "zero") for number in range(count)]
    kernel = "PCR 4: systemd-boot is not in the policy (Authenticode 3f2a…); expected one of 2 digests"
    bad = (("platform.boot", "fail", kernel),)
    periods = [
        period(
            each,
            "rejected" if each.number == 3 else "warned" if each.number == 1 else "accepted",
            ("llama-3.1-8b",) if each.number % 2 else ("llama-3.1-8b", "qwen-3-32b"),
            found=bad if each.number == 3 else (),
            kernel="other" if each.number == 3 else "linux 6.1",
        )
        for each in boots
    ]
    findings = (
        Finding(
            Code.SLEEP, Severity.NOTICE, Place(boot=1, commit=50), "the host slept: restartCount rose by 1"
        ),
        Finding(
            Code.CHAIN_GAP, Severity.GAP, Place(boot=2, commit=80), "somebody else extended the chain PCR"
        ),
        Finding(Code.PLATFORM, Severity.POLICY, Place(boot=3, commit=120), kernel),
        Finding(
            Code.BOOT_LOG, Severity.COULD_NOT, Place(path="blob/" + value("ima 0"), boot=0), "no such blob"
        ),
        Finding(
            Code.RECORD_UNMATCHED,
            Severity.FALSE,
            Place(path="answer-17.attestation"),
            "the log does not have the leaf that this attestation proves: two histories",
        ),
    )
    records = MatchedRecords(
        18, 17, 4012, (("answer-1.attestation", 17),), ("answer-17.attestation",), ((20, 40),)
    )
    starts = tuple(start_of(each, skipped=2 if each.number == 2 else 0) for each in boots)
    return report(boots, periods, findings, records=records, starts=starts)


def many(count: int = 40) -> AuditReport:
    """Many boots of many lengths, four models that come and go."""
    boots = [boot(number, 3 + number * 7 % 40, gap=45 - number * 7 % 40) for number in range(count)]
    names = ("llama-3.1-8b", "qwen-3-32b", "mistral-small-3.2-24b-instruct-2506", "gemma-3-27b")
    periods = [
        period(
            each,
            "rejected" if each.number in (17, 18) else "warned" if each.number == 30 else "accepted",
            tuple(names[place] for place in range(4) if (each.number // 5 + place) % 3 != 1),
        )
        for each in boots
    ]
    findings = tuple(
        Finding(
            Code.PLATFORM, Severity.POLICY, Place(boot=number, commit=number * 40), "PCR 7: dbx is too old"
        )
        for number in (17, 18)
    )
    return report(boots, periods, findings)


def unread() -> AuditReport:
    """An audit that could not even read the genesis record."""
    found = (Finding(Code.GENESIS, Severity.COULD_NOT, Place(path="blob/00"), "there is no genesis record"),)
    counts = ((Severity.COULD_NOT, 1),)
    return AuditReport(
        BEGIN // 1000, value("policy"), False, None, (), (), (), (), (), None, found, counts, UNKNOWABLE
    )


def hostile() -> AuditReport:
    """Texts of an attacker wherever a report has any, and times that no calendar has."""
    only = boot(0)
    far = Span(0, 39, 1, 4001, (0, 1), (-(1 << 62), 1 << 62))
    made = period(only, HOSTILE, (HOSTILE,), found=((HOSTILE, HOSTILE, HOSTILE),))
    worst = AuditedBoot(
        0, 1, 2, far, HOSTILE, False, HOSTILE, (AuditedBootLog(HOSTILE, HOSTILE, HOSTILE, 3, HOSTILE),)
    )
    shown = Period(
        0, far, HOSTILE, made.findings, HOSTILE, ((0, HOSTILE),), HOSTILE, HOSTILE, 3, HOSTILE, made.models
    )
    findings = (Finding(Code.CHAIN, Severity.FALSE, Place(path=HOSTILE, commit=1), HOSTILE),)
    records = MatchedRecords(1, 0, 0, ((HOSTILE, 3),), (HOSTILE,), ((1, 2),))
    told = report(
        [worst],
        [shown],
        findings,
        records=records,
        witnesses=(Witnessing(0, 4001, 1 << 62, (HOSTILE,)),),
        starts=(),
        statements=(AuditedStatement(1, 0, 1 << 62, HOSTILE),),
    )
    assert told.log is not None
    log = AuditedLog(HOSTILE, HOSTILE, 4001, HOSTILE, 4001, 40, 1 << 62, HOSTILE, False, 7)
    return AuditReport(
        1 << 62,
        HOSTILE,
        True,
        log,
        told.boots,
        told.starts,
        told.periods,
        told.statements,
        told.witnesses,
        told.records,
        told.findings,
        told.counts,
        (HOSTILE,),
    )
