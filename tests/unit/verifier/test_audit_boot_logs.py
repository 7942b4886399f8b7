# SPDX-License-Identifier: Apache-2.0
"""The logs of one boot in an audit: the longest is replayed, and each shorter part must be one of it."""

from __future__ import annotations

import hashlib

import pytest
from ima_logs import host_log, ima_entry, replayed

from quotary_verifier.audit.bootlogs import ReplayedLogs, replay_logs
from quotary_verifier.audit.boots import OpenBoot, OpenLog, Stretch
from quotary_verifier.audit.findings import Severity
from quotary_verifier.audit.reading import Absent, Blobs

DATAS = host_log(dict.fromkeys(range(10), bytes(32)), 6)
LOG = b"".join(map(ima_entry, DATAS))
ENDS = [len(b"".join(map(ima_entry, DATAS[:count]))) for count in range(len(DATAS) + 1)]
OWN = frozenset({13, 15})


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def value(count: int) -> bytes:
    """PCR 10 after so many records."""
    return replayed(DATAS[:count])


def named(counts: dict[int, int], *, data: bytes = LOG) -> OpenLog:
    """A log of which commits named parts of so many records, the number of the commit with each."""
    log = OpenLog()
    for count, commit in counts.items():
        size = ENDS[count]
        log.prefixes[size] = sha256(data[:size])
        log.ima[size] = value(count)
        log.commits[size] = commit
        log.quoted = dict.fromkeys(range(16), bytes(32)) | {10: value(count)}
    return log


def judged(log: OpenLog, *, name: str = "ima", blob: bytes | None = LOG) -> ReplayedLogs:
    def read(path: str, _: int) -> bytes:
        if blob is None:
            raise Absent(path)
        return blob

    boot = OpenBoot(0, 7, 0, "zero", 1, Stretch(0, 1), logs={name: log})
    return replay_logs(boot, Blobs(read), OWN)


def false(result: ReplayedLogs) -> str:
    (found,) = result.findings
    assert found.severity is Severity.FALSE
    assert result.logs[0].state == "not-replayed"
    assert result.ima is None
    return found.message


def test_a_log_of_which_commits_name_ever_longer_parts_is_replayed_once() -> None:
    result = judged(named({1: 0, 3: 4, 4: 5, 7: 9}))
    assert result.findings == ()
    assert result.ima is not None
    assert result.ima.count == 7
    assert result.logs[0].said == "7 records, 0 violations, 4 prefixes"


def test_a_part_with_another_digest_is_not_one_of_the_log() -> None:
    log = named({3: 4, 7: 9})
    log.prefixes[ENDS[3]] = sha256(b"another")
    assert f"its first {ENDS[3]} bytes are not those" in false(judged(log))


def test_a_part_that_was_quoted_with_another_value_does_not_replay() -> None:
    log = named({3: 4, 7: 9})
    log.ima[ENDS[3]] = value(2)
    assert f"its first {ENDS[3]} bytes do not replay" in false(judged(log))


def test_a_part_that_ends_within_a_record_is_false() -> None:
    log = named({3: 4, 7: 9})
    size = ENDS[3] - 5
    log.prefixes[size], log.ima[size], log.commits[size] = sha256(LOG[:size]), value(3), 5
    assert f"its first {size} bytes end within a record" in false(judged(log))


def test_records_that_were_logged_and_not_measured_are_false() -> None:
    log = named({7: 9})
    log.quoted[10] = log.ima[ENDS[7]] = value(6)
    assert "were not measured into PCR 10" in false(judged(log))


def test_a_blob_with_other_bytes_or_fewer_than_are_named_is_false() -> None:
    log = named({7: 9})
    assert "does not hold the bytes of that digest" in false(judged(log, blob=LOG[:-1]))
    log.prefixes = {ENDS[7] + 1: sha256(LOG)}
    log.commits = {ENDS[7] + 1: 9}
    assert "leading bytes are named" in false(judged(log))


@pytest.mark.parametrize(
    ("name", "blob", "state", "severity"),
    [
        ("ima", None, "missing", Severity.COULD_NOT),
        ("tcg", None, "missing", Severity.COULD_NOT),
        ("other", LOG, "unknown", Severity.NOTICE),
        ("tcg", LOG, "not-replayed", Severity.FALSE),
    ],
)
def test_a_log_that_is_missing_of_no_known_name_or_of_another_kind_is_told_apart(
    name: str, blob: bytes | None, state: str, severity: Severity
) -> None:
    result = judged(named({7: 9}), name=name, blob=blob)
    assert ([log.state for log in result.logs], [f.severity for f in result.findings]) == (
        [state],
        [severity],
    )
