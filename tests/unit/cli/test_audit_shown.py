# SPDX-License-Identifier: Apache-2.0
"""An audit for people: the culprit first as text, and one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

import html
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import audit_samples
import pytest
from audit_samples import HOSTILE, boot, hostile, many, one_boot, period, rejected, report, unread, witnessed

from quotary_cli.auditview.facts import changes, groups, instant, model_runs, stretches
from quotary_cli.auditview.html import audit_page
from quotary_cli.auditview.text import audit_lines
from quotary_cli.auditview.timeline import axis_of
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.report import AuditReport

SAMPLES = (one_boot, witnessed, rejected, many, unread, hostile)
NAME = "gpu-07.tar"
VOID = {"meta", "br"}
REJECTED = """\
rejected  gpu-07.tar
  The log holds evidence that is malformed or false.

  false     the log does not have the leaf that this attestation proves: two histories
            record.unmatched  at answer-17.attestation
  policy    PCR 4: systemd-boot is not in the policy (Authenticode 3f2a…); expected one of 2 digests
            policy.platform  at boot 3, commit 120
  could-not no such blob
            boot-log  at boot 0, blob/0c5cd3b15bf84770cb23740f5a57f3bb6ab898c274f60ffac6e52d9b1050c985
  gap       somebody else extended the chain PCR
            chain.gap  at boot 2, commit 80
  notice    the host slept: restartCount rose by 1
            clock.sleep  at boot 1, commit 50

log        gpu-07.example.net/abcdefghabcdefghabcdefghabcdefgh
           20,001 leaves in 200 commits
           begun 2026-09-21 14:13 by the host's clock, AK ECC P-256

boots      by the host's clock, which is the host's word, in UTC
        0  2026-09-21 14:13 to 2026-09-22 10:13  accepted  commits 0-39
           log ima: missing (the log does not have this blob)
        1  2026-09-22 14:13 to 2026-09-23 10:13  warned    commits 40-79
        2  2026-09-23 14:13 to 2026-09-24 10:13  accepted  commits 80-119, chain gap
        3  2026-09-24 14:13 to 2026-09-25 10:13  rejected  commits 120-159
           other values than in the boot before: PCR 4
        4  2026-09-25 14:13 to 2026-09-26 10:13  accepted  commits 160-199
           other values than in the boot before: PCR 4
           2 numbers of the start counter skipped before commit 80

models     that the workload log lists, and so may have served, by the host's clock
           2026-09-21 14:13 to 2026-09-22 10:13  llama-3.1-8b, qwen-3-32b
           2026-09-22 14:13 to 2026-09-23 10:13  llama-3.1-8b
           2026-09-23 14:13 to 2026-09-24 10:13  llama-3.1-8b, qwen-3-32b
           2026-09-24 14:13 to 2026-09-25 10:13  llama-3.1-8b
           2026-09-25 14:13 to 2026-09-26 10:13  llama-3.1-8b, qwen-3-32b

witnesses  no checkpoint with a quorum
records    17 of 18 given are in the log
           not there: answer-17.attestation
           4,012 leaves without a record that was given

what no audit of this log can show
  - that the host has no second log under another key
  - what happened between the last commit of a boot and the next start
  - that outputs without an attestation were not served
"""


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text; fails on elements that do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data + "\n"


def lines(of: AuditReport, *, everything: bool = False) -> str:
    return "\n".join(audit_lines(of, NAME, everything=everything)) + "\n"


def test_the_culprit_comes_first_and_everything_has_its_place() -> None:
    assert lines(rejected()) == REJECTED


def test_an_audit_in_which_all_is_well_is_short() -> None:
    shown = lines(witnessed())
    assert shown.startswith(
        f"verified  {NAME}\n  All evidence holds, and the policy accepts all of it.\n\nlog "
    )
    assert (
        "witnesses  3 checkpoints with a quorum, the newest of 11,101 leaves at 2026-09-26 04:13\n" in shown
    )
    assert len(shown.splitlines()) < 35


def test_long_lists_are_cut_unless_all_is_asked_for() -> None:
    short, whole = lines(many()), lines(many(), everything=True)
    assert "28 earlier boots (--explain shows all)" in short
    assert sum(" commits " in line for line in whole.splitlines()) == 40
    assert len(short.splitlines()) < 50


def test_notices_never_crowd_out_what_weighs_more() -> None:
    only = boot(0)
    found = tuple(Finding(Code.SLEEP, Severity.NOTICE, Place(commit=n), f"slept {n}") for n in range(30))
    found += tuple(Finding(Code.CHAIN, Severity.FALSE, Place(commit=n), f"chain {n}") for n in range(9))
    shown = lines(report([only], [period(only)], found))
    assert all(f"chain {number}\n" in shown for number in range(9))
    assert "slept 0" in shown
    assert "slept 29" not in shown


def test_findings_that_say_the_same_are_one_with_many_places() -> None:
    found = [Finding(Code.PLATFORM, Severity.POLICY, Place(commit=n), "PCR 10") for n in range(5)]
    (group,) = groups(found)
    assert len(group.places) == 5
    only = boot(0)
    shown = lines(report([only], [period(only)], tuple(found)))
    assert "policy.platform  at commit 0; commit 1; commit 2; and 2 more places" in shown


def test_periods_that_differ_in_pcr_values_only_are_one() -> None:
    made = stretches(witnessed().periods)
    assert [stretch.span.first_commit for stretch in made] == [0, 40, 55, 60, 80]
    assert made[0].moved == (10,)
    assert len(model_runs(witnessed().periods)) == 3
    first, _, third, _, *_ = witnessed().periods
    assert len(stretches([first, third])) == 2, "what lies between them was left out"
    assert changes(witnessed()) == {1: (), 2: (4,)}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)
def test_a_page_is_well_formed_loads_nothing_and_runs_nothing(sample: Callable[[], AuditReport]) -> None:
    page = audit_page(sample(), NAME, policy="policy.toml")
    seen = Page(page)
    assert not {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "a",
        "use",
        "image",
    } & set(seen.tags)
    names = {name for name, _ in seen.attributes}
    assert not {name for name in names if name.startswith("on") or name in ("style", "src", "href", "srcset")}
    assert seen.tags.count("style") == 1
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    style = page.split("<style>")[1].split("</style>")[0]
    policy = next(value for _, value in seen.attributes if "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy


def test_nothing_that_an_attacker_wrote_becomes_markup() -> None:
    page = audit_page(hostile(), HOSTILE, policy=HOSTILE)
    seen = Page(page)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "</style><style>" not in page
    assert "<script>alert(1)</script>\"'&\\x1b[31m\\u202eevil" in seen.text
    clean = Page(audit_page(one_boot(), NAME))
    assert {*seen.tags} - {*clean.tags} <= {"circle", "details", "pre", "small", "summary"}
    shown = lines(hostile(), everything=True)
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_a_page_has_every_finding_boot_and_record_as_text_and_says_what_stays_unknown() -> None:
    seen = Page(audit_page(rejected(), NAME))
    for finding in rejected().findings:
        assert finding.message in seen.text
    assert "answer-17.attestation" in seen.text
    assert all(line in seen.text for line in audit_samples.UNKNOWABLE)
    assert "What no audit of this log can show" in seen.text
    boots = re.findall(r"<rect[^>]*class=\"boot", audit_page(many(), NAME))
    assert len(boots) == 40


def test_the_drawing_has_a_name_and_every_table_a_caption() -> None:
    seen = Page(audit_page(rejected(), NAME))
    assert ("aria-labelledby", "timeline-title timeline-desc") in seen.attributes
    assert seen.tags.count("table") == seen.tags.count("caption")
    assert ("lang", "en") in seen.attributes


def test_every_column_of_times_names_whose_clock_it_is() -> None:
    for sample in (one_boot(), rejected(), many()):
        heads = re.findall(r"<th[^>]*>([^<]*)</th>", audit_page(sample, NAME))
        timed = [html.unescape(head) for head in heads if re.search(r"\b(from|time|listed|quorum)\b", head)]
        assert timed
        assert [head for head in timed if "clock" not in head] == []


def test_the_axis_is_the_hosts_clock_only_where_it_runs_forward() -> None:
    axis = axis_of(witnessed())
    assert axis is not None
    assert axis.by_time
    made = witnessed()
    turned = replace(made, boots=made.boots[::-1])
    axis = axis_of(turned)
    assert axis is not None
    assert not axis.by_time
    assert "because the host" in audit_page(turned, NAME)
    assert axis_of(unread()) is None


def test_a_time_that_no_calendar_has_is_shown_as_its_number() -> None:
    assert instant(1 << 62) == f"{1 << 62} ms"
    assert instant(0) == "1970-01-01 00:00"
