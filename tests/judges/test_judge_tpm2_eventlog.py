# SPDX-License-Identifier: Apache-2.0
"""Event logs, read by us and by `tpm2_eventlog` of tpm2-tools: events, digests and replayed PCRs agree."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tcg_judge
from corpus import corpus_bytes, entries, needs_corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tcg_logs import TcgWriter, Written, good_boot

from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.tcg import parse_tcg_log

pytestmark = pytest.mark.judge

ALGORITHMS = {"sha1": 0x04, "sha256": 0x0B, "sha384": 0x0C, "sha512": 0x0D}
LOGS = [one["file"] for one in entries("tpm/eventlog/") if one["file"].endswith(".bin")]
CC_LOGS = [one["file"] for one in entries("tpm/ccel/") if one["kind"] == "ccel"]
OURS = sorted((Path(__file__).resolve().parents[1] / "vectors" / "vm").rglob("*tcg*.bin"))
"""Logs that the project's own VMs wrote."""
UNREAD = {
    "bad-keylime-empty.bin": "is empty",
    "bad-keylime-garbage.bin": "is no log",
    "tcg1-laptop-option-rom-sha1.bin": "it crashes (tpm2-tools 5.4)",
    "tcg2-ibm-acs-small.bin": "its Spec ID event has a digest, which we do not look at",
    "tcg2-one-short-noaction.bin": "its only event is shorter than a Spec ID event",
}
"""Logs of the corpus that the judge does not read, and why."""


def agree(data: bytes, file: Path, registers: t.Registers = t.Registers.TPM) -> None:
    file.write_bytes(data)
    text = tcg_judge.run_judge(file)
    assert text is not None
    events, pcrs = tcg_judge.read_ours(parse_tcg_log(data, registers=registers))
    judged_events, judged_pcrs = tcg_judge.read_judge(text)
    assert events == judged_events
    for bank, values in pcrs.items():
        old = {0: extending_what_is_never_extended(data, bank)}
        assert judged_pcrs[bank] in (values, values | old)


def extending_what_is_never_extended(data: bytes, bank: str) -> str:
    """What versions before 5.5 make of PCR 0: they extend EV_NO_ACTION and begin at zero whatever the locality."""
    value = bytes(hashlib.new(bank).digest_size)
    for event in parse_tcg_log(data).unverified_events_do_not_trust()[1:]:
        if event.register == 0:
            value = hashlib.new(bank, value + event.digests[ALGORITHMS[bank]]).digest()
    return value.hex()


@needs_corpus
@pytest.mark.parametrize("file", LOGS, ids=lambda file: file.rpartition("/")[2])
def test_the_judge_agrees_on_a_log_of_the_corpus(file: str, tmp_path: Path) -> None:
    name = file.rpartition("/")[2]
    if name in UNREAD:
        (tmp_path / name).write_bytes(corpus_bytes(file))
        assert tcg_judge.run_judge(tmp_path / name) in {None, "---\n"}
        return
    agree(corpus_bytes(file), tmp_path / name)


@needs_corpus
@pytest.mark.parametrize("file", CC_LOGS, ids=lambda file: file.rpartition("/")[2])
def test_the_judge_agrees_on_the_log_of_a_confidential_vm(file: str, tmp_path: Path) -> None:
    """The judge knows PCRs only: it is given the log without its padding, and with a header for register 0."""
    data = corpus_bytes(file)
    padding = parse_tcg_log(data, registers=t.Registers.CC, tolerate={t.Tolerance.PADDING}).padding
    known = data[4 : len(data) - padding]
    assert tcg_judge.run_judge_on(data, tmp_path / "as it is") is None
    agree(bytes(4) + known, tmp_path / "known", t.Registers.CC)


@needs_corpus
def test_the_judge_agrees_on_the_log_beside_a_quote_of_the_corpus(tmp_path: Path) -> None:
    found = json.loads(corpus_bytes("tpm/quote/gce-cos85-rsa-nonce9009.json"))
    agree(base64.b64decode(found["event_log_b64"]), tmp_path / "log")


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.parent.name)
def test_the_judge_agrees_on_a_log_of_our_machines(file: Path, tmp_path: Path) -> None:
    agree(file.read_bytes(), tmp_path / "log")


def test_the_judge_agrees_on_the_logs_that_the_tests_write(tmp_path: Path) -> None:
    for number, boot in enumerate(
        (good_boot(), good_boot(enabled=False), good_boot(banks=(0x0B, 0x0C, 0x0D)))
    ):
        agree(boot.agile(), tmp_path / f"{number}.bin")
    agree(good_boot().old(), tmp_path / "old.bin")


EVENTS = st.builds(
    Written,
    register=st.integers(0, 15),
    type=st.sampled_from(
        [t.EV_POST_CODE, t.EV_S_CRTM_VERSION, t.EV_COMPACT_HASH, t.EV_EFI_ACTION, t.EV_NONHOST_INFO]
    ),
    data=st.binary(max_size=40),
    measured=st.none() | st.binary(max_size=8),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(EVENTS, min_size=1, max_size=12),
    banks=st.permutations([0x04, 0x0B, 0x0C]).flatmap(
        lambda all_: st.integers(1, 3).map(lambda n: tuple(all_[:n]))
    ),
)
def test_the_judge_agrees_on_made_up_logs(events: list[Written], banks: Any, tmp_path: Path) -> None:
    agree(TcgWriter(banks, events).agile(), tmp_path / "log.bin")
