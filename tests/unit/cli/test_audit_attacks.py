# SPDX-License-Identifier: Apache-2.0
"""Histories in which one thing is false or missing: an audit says what and where, and the rest is still judged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from agents import policy_of
from nacl.signing import SigningKey
from soft_log import CHAIN, SoftLog

from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit.findings import Code, Place, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.tlog.note import TYPE_COSIGNATURE, Note, VerifierKey, parse_note
from quotary_verifier.wire.declaration import Declaration, Service
from quotary_verifier.wire.history import Commit, split

AT = 1_790_000_100
STATED = Declaration.of([Service(("/v1/chat/completions",))]).text


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    """A host with two boots and three starts, 700 leaves, a statement; tests may let it go on."""
    log = SoftLog(tmp_path / "log")
    log.start()
    log.state(STATED)
    log.outputs(300)
    log.start()
    log.outputs(5)
    log.reset()
    log.start(models=("llama", "qwen"))
    for count in (100, 1, 290):
        log.outputs(count)
    return log


def audited(log: SoftLog, *, extra: str = "", **more: object) -> AuditReport:
    """Audit a log under a policy that pins its origin."""
    policy = policy_of(log.origin, extra)
    return audit_source(Wanted(str(log.finish()), policy, AT, **more))  # type: ignore[arg-type]


def only(report: AuditReport) -> tuple[Code, Severity, str]:
    """The one finding of an audit, with all that it says of the place."""
    (finding,) = report.findings
    where = finding.where
    parts = (where.path, where.commit, where.leaf)
    return finding.code, finding.severity, f"{finding.message} {parts}"


def change(log: SoftLog, path: str, edit: Callable[[bytearray], object]) -> None:
    """Change a published file."""
    log.finish()
    place = log.files.folder / path
    data = bytearray(place.read_bytes())
    edit(data)
    place.write_bytes(data)


def flip(at: int) -> Callable[[bytearray], None]:
    def edit(data: bytearray) -> None:
        data[at] ^= 1

    return edit


def commits(log: SoftLog) -> list[bytes]:
    return list(split((log.files.folder / "history/000").read_bytes()))


def rewrite(log: SoftLog, items: list[bytes]) -> None:
    log.files.write("history/000", b"".join(items))


def test_a_history_that_holds_is_verified_with_everything_in_it(log: SoftLog) -> None:
    report = audited(log)
    assert report.outcome == "verified"
    assert report.findings == ()
    assert report.log is not None
    assert (report.log.size, report.log.commits) == (log.size, 9)
    assert [boot.reset_count for boot in report.boots] == [7, 8]
    assert [(start.commit, start.counter) for start in report.starts] == [(0, 2), (3, 3), (5, 4)]
    assert [(item.leaf, item.text) for item in report.statements] == [(2, STATED)]
    assert [tuple(model.name for model in period.models) for period in report.periods] == [
        ("llama",),
        ("llama",),
        ("llama", "qwen"),
    ]
    first = report.periods[0].span
    assert (first.first_commit, first.last_commit, first.first_leaf, first.size) == (0, 2, 1, 303)
    assert first.time_ms == (1_790_000_001_050, 1_790_000_001_150)


def test_a_changed_byte_of_a_hash_tile_names_the_tile_and_the_leaf(log: SoftLog) -> None:
    change(log, "tile/0/001", flip(32 * 7))
    report = audited_again(log)
    assert only(report) == (
        Code.TILE,
        Severity.FALSE,
        "tile/0/001: the hash of leaf 263 is not that of its entry ('tile/0/001', None, 263)",
    )
    assert report.outcome == "rejected"


def audited_again(log: SoftLog, **more: object) -> AuditReport:
    """Audit the published files as they are."""
    wanted = Wanted(str(log.files.folder), policy_of(log.origin), AT, **more)  # type: ignore[arg-type]
    return audit_source(wanted)


def test_a_changed_entry_names_the_bundle_and_the_leaf(log: SoftLog) -> None:
    change(log, "tile/entries/001", flip(34 * 9 + 5))
    code, severity, said = only(audited_again(log))
    assert (code, severity) == (Code.BUNDLE, Severity.FALSE)
    assert "tile/entries/001: entry 265 is not the one that the tree was made of" in said


def test_a_tile_above_the_first_level_that_differs_is_named(log: SoftLog) -> None:
    change(log, "tile/1/000.p/2", flip(40))
    code, _, said = only(audited_again(log))
    assert code is Code.TILE
    assert "tile/1/000.p/2: hash 1 is not that of the tiles below it" in said


def test_a_dropped_entry_makes_the_bundle_malformed_and_the_rest_is_judged_by_the_hash_tiles(
    log: SoftLog,
) -> None:
    def drop(data: bytearray) -> None:
        del data[34 * 9 : 34 * 10]

    change(log, "tile/entries/001", drop)
    report = audited_again(log)
    (found,) = (finding for finding in report.findings if finding.severity is Severity.FALSE)
    assert (found.code, found.where.path) == (Code.BUNDLE, "tile/entries/001")
    assert "it has 8670 bytes, not 256 times 34" in found.message
    assert report.complete
    # the boot record at leaf 309 cannot be found without its entry
    assert [(f.code, f.where.leaf) for f in report.findings if f is not found] == [(Code.START, 309)]


def test_a_bundle_in_the_place_of_another_is_named(log: SoftLog) -> None:
    log.finish()
    one, two = (log.files.folder / f"tile/entries/00{number}" for number in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    two.write_bytes(first)
    (found,) = (f for f in audited_again(log).findings if f.severity is Severity.FALSE)
    assert (found.code, found.where) == (Code.BUNDLE, Place("tile/entries/001", None, 256))
    one.write_bytes(second)
    assert audited_again(log).findings[0].code is Code.GENESIS


def test_an_entry_changed_with_its_tile_breaks_the_checkpoint_over_it(log: SoftLog) -> None:
    change(log, "tile/entries/001", flip(34 * 9 + 5))
    entry = (log.files.folder / "tile/entries/001").read_bytes()[34 * 9 + 2 : 34 * 10]

    def fit(data: bytearray) -> None:
        data[32 * 9 : 32 * 10] = hashlib.sha256(b"\0" + entry).digest()

    change(log, "tile/0/001", fit)
    code, severity, said = only(audited_again(log))
    assert (code, severity) == (Code.ROOT, Severity.FALSE)
    assert "the root of checkpoint 303 is not that of the first 303 leaves" in said


def test_a_commit_removed_from_the_middle_leaves_leaves_that_belong_to_none(log: SoftLog) -> None:
    log.finish()
    items = commits(log)
    rewrite(log, items[:7] + items[8:])
    report = audited_again(log)
    said = {(finding.code, finding.severity) for finding in report.findings}
    assert said == {(Code.RANGE, Severity.FALSE), (Code.CHAIN, Severity.FALSE)}
    assert "a commit between 6 and 7 is missing" in report.findings[0].message


def test_a_start_removed_with_its_commit_shows_as_a_skipped_counter_and_a_gap(log: SoftLog) -> None:
    log.finish()
    items = commits(log)
    rewrite(log, items[:3] + items[5:])  # the second start, and what it did
    report = audited_again(log)
    assert report.outcome == "rejected"
    assert Code.START in {finding.code for finding in report.findings}


def test_the_end_of_a_history_that_is_missing_could_not_be_checked(log: SoftLog) -> None:
    log.finish()
    rewrite(log, commits(log)[:-1])
    report = audited_again(log)
    assert only(report)[:2] == (Code.HISTORY_SHORT, Severity.COULD_NOT)
    assert (report.outcome, report.complete) == ("could-not-check", False)


def test_a_truncated_history_file_is_false_at_its_commit(log: SoftLog) -> None:
    change(log, "history/000", lambda data: data.__delitem__(slice(-100, None)))
    code, severity, said = only(audited_again(log))
    assert (code, severity) == (Code.HISTORY, Severity.FALSE)
    assert "('history/000', 8, None)" in said


def test_an_extend_between_two_commits_of_one_run_is_false(log: SoftLog) -> None:
    log.extend(CHAIN, b"x" * 32)
    log.outputs(3)
    code, severity, said = only(audited(log))
    assert (code, severity) == (Code.CHAIN, Severity.FALSE)
    assert "no start of the agent lies between them (None, 9, None)" in said


def test_an_extend_before_a_start_is_a_gap(log: SoftLog) -> None:
    log.extend(CHAIN, b"x" * 32)
    log.start()
    report = audited(log)
    assert only(report)[:2] == (Code.CHAIN_GAP, Severity.GAP)
    assert report.outcome == "verified"


def test_a_chain_that_begins_again_within_a_boot_is_false(log: SoftLog) -> None:
    log.pcrs[CHAIN] = bytes(32)
    log.outputs(3)
    code, severity, said = only(audited(log))
    assert (code, severity) == (Code.CHAIN, Severity.FALSE)
    assert "began again at zero within a boot" in said


def test_a_skipped_start_counter_is_shown_and_one_that_falls_is_false(log: SoftLog) -> None:
    log.counter += 2
    log.start()
    report = audited(log)
    assert only(report)[:2] == (Code.START_SKIPPED, Severity.GAP)
    assert [start.skipped for start in report.starts] == [0, 0, 0, 2]
    log.counter = 3
    log.start()
    assert [f.code for f in audited(log).findings] == [Code.START_SKIPPED, Code.START_COUNTER]


def test_reset_counts_that_go_back_are_false(log: SoftLog) -> None:
    log.reset(reset_count=6)
    log.start()
    report = audited(log)
    assert report.findings[0].code in (Code.CLOCK, Code.START)
    assert "the reset count fell: 8, then 6" in {f.message for f in report.findings}
    assert report.outcome == "rejected"


def test_a_clock_that_runs_back_within_a_boot_is_false(log: SoftLog) -> None:
    log.clock = replace(log.clock, clock=log.clock.clock - 500)
    log.outputs(1)
    code, severity, said = only(audited(log))
    assert (code, severity) == (Code.CLOCK, Severity.FALSE)
    assert "within one boot" in said


def test_a_quote_of_another_commit_in_its_place_is_false(log: SoftLog) -> None:
    log.finish()
    items = commits(log)
    one, two = Commit.decode(items[6]), Commit.decode(items[7])
    lines = one.note.rpartition("\n— ".encode())[2]
    note = two.note.rpartition("\n— ".encode())[0] + "\n— ".encode() + lines
    items[7] = replace(two, note=note).encode()
    rewrite(log, items)
    report = audited_again(log)
    assert (report.findings[0].code, report.findings[0].where.commit) == (Code.QUOTE, 7)
    assert report.outcome == "rejected"


def test_a_checkpoint_of_another_tree_is_false(log: SoftLog) -> None:
    log.files.append([b"e" * 32])
    log.commit(root=hashlib.sha256(b"another").digest())
    code, severity, said = only(audited(log))
    assert (code, severity) == (Code.ROOT, Severity.FALSE)
    assert f"checkpoint {log.size}" in said


def test_a_missing_workload_log_could_not_be_checked_and_is_named_once(log: SoftLog) -> None:
    assert log.workload is not None
    path = f"blob/{log.workload[0].hex()}"
    log.outputs(2)
    log.finish()
    (log.files.folder / path).unlink()
    report = audited_again(log)
    assert [(f.code, f.severity, f.where.path) for f in report.findings] == [
        (Code.WORKLOAD, Severity.COULD_NOT, path)
    ]
    assert report.exit_code == 3


def test_another_workload_log_under_the_name_is_false(log: SoftLog) -> None:
    assert log.workload is not None
    change(log, f"blob/{log.workload[0].hex()}", flip(60))
    report = audited_again(log)
    assert report.findings[0].code is Code.PCRS
    assert report.exit_code == 1


def test_a_start_that_is_withheld_within_a_boot_shows_at_the_next_one(log: SoftLog) -> None:
    record = log.start()
    log.outputs(3)
    log.finish()
    (log.files.folder / f"blob/{hashlib.sha256(record).hexdigest()}").unlink()
    assert (
        audited_again(log).findings == ()
    )  # the chain is whole, and nothing else says that the agent began anew
    log.start()
    assert only(audited(log))[:2] == (Code.START_SKIPPED, Severity.GAP)


def test_the_boot_record_of_a_new_boot_must_be_published(log: SoftLog) -> None:
    log.reset()
    record = log.start()
    log.finish()
    (log.files.folder / f"blob/{hashlib.sha256(record).hexdigest()}").unlink()
    assert only(audited_again(log))[:2] == (Code.START, Severity.COULD_NOT)


def test_leaves_staged_before_a_crash_are_shown_as_history(log: SoftLog) -> None:
    log.reset()
    log.start(lost=[b"a" * 32, b"b" * 32])
    report = audited(log)
    code, severity, said = only(report)
    assert (code, severity) == (Code.HISTORY_LEAVES, Severity.GAP)
    assert "or claimed by a commit that the history does not have" in said
    assert report.starts[-1].history == (log.size - 3, log.size - 1)


def test_outputs_of_a_boot_that_is_withheld_whole_are_a_gap(log: SoftLog) -> None:
    """The next start names the commit before it as the last one, and a counter that a forger certified meanwhile."""
    log.reset()
    log.files.append([b"o" * 32] * 3)
    log.reset()
    log.start()
    found = {finding.code: finding.severity for finding in audited(log).findings}
    assert found == {Code.HISTORY_LEAVES: Severity.GAP, Code.RESETS: Severity.GAP}


def test_boots_without_a_commit_are_counted(log: SoftLog) -> None:
    log.reset(reset_count=11)
    log.start()
    code, severity, said = only(audited(log))
    assert (code, severity) == (Code.RESETS, Severity.GAP)
    assert "3 resets lie between" in said


@pytest.mark.parametrize(
    ("allowed", "outcome", "statuses"),
    [
        (("llama", "qwen"), "verified", ["accepted", "accepted", "accepted"]),
        (("llama",), "verified", ["accepted", "accepted", "warned"]),
        (("qwen",), "rejected", ["rejected", "rejected", "warned"]),
    ],
)
def test_a_model_that_the_policy_does_not_name_is_never_accepted_in_silence(
    log: SoftLog, allowed: tuple[str, ...], outcome: str, statuses: list[str]
) -> None:
    report = audited(log, extra="".join(f'[[model]]\nname = "{name}"\n' for name in allowed))
    assert report.outcome == outcome
    assert [period.status for period in report.periods] == statuses


def test_a_statement_that_is_none_is_false_and_a_later_kind_could_not_be_checked(log: SoftLog) -> None:
    log.state('{"schema":"quotary-statement/v1","services":[],"more":1}')
    log.state('{"schema":"quotary-statement/v9","services":[]}')
    report = audited(log)
    assert [(f.code, f.severity) for f in report.findings] == [
        (Code.STATEMENT, Severity.FALSE),
        (Code.STATEMENT, Severity.COULD_NOT),
    ]


WITNESS = SigningKey(b"w" * 32)


def _witnesses() -> str:
    key = VerifierKey("witness.example/w", TYPE_COSIGNATURE, bytes(WITNESS.verify_key))
    return f'[witnesses]\nkeys = ["{key.encode()}"]\n'


def test_cosignatures_are_shown_with_their_time_and_what_they_do_not_cover(log: SoftLog) -> None:
    log.cosigned("witness.example/w", WITNESS, AT - 60)
    log.outputs(1)
    report = audited(log, extra=_witnesses())
    assert [(item.size, item.time) for item in report.witnesses] == [(log.size - 1, AT - 60)]
    assert only(report)[:2] == (Code.WITNESS, Severity.NOTICE)


def test_no_quorum_where_the_policy_asks_for_one_could_not_be_checked(log: SoftLog) -> None:
    report = audited(log, extra=_witnesses())
    assert (only(report)[:2], report.exit_code) == ((Code.WITNESS, Severity.COULD_NOT), 3)


def test_a_cosignature_on_another_tree_of_the_same_size_is_a_split(log: SoftLog) -> None:
    log.cosigned("witness.example/w", WITNESS, AT - 60, log.text(b"r" * 32))
    report = audited(log, extra=_witnesses())
    assert report.findings[0].code is Code.WITNESS_SPLIT
    assert report.outcome == "rejected"


def test_a_false_cosignature_is_false(log: SoftLog) -> None:
    log.cosigned("witness.example/w", WITNESS, AT - 60)
    change(log, f"cosigned/{log.size}", lambda data: data.__setitem__(-5, ord("A") ^ (data[-5] == ord("A"))))
    policy = policy_of(log.origin, _witnesses())
    report = audit_source(Wanted(str(log.files.folder), policy, AT))
    assert report.findings[0].code is Code.WITNESS
    assert report.outcome == "rejected"


def test_a_policy_that_allows_no_software_and_no_such_registers_rejects_by_period(log: SoftLog) -> None:
    pcrs = f'[platform.pcrs]\n4 = ["{"0" * 64}"]\n'
    report = audited(log, extra=pcrs)
    assert {(f.code, f.severity) for f in report.findings} == {(Code.PLATFORM, Severity.POLICY)}
    assert {period.status for period in report.periods} == {"rejected"}
    assert {rule for period in report.periods for rule, _, _ in period.findings} >= {"platform.pcrs.4"}


def test_a_genesis_record_of_another_origin_ends_the_audit(log: SoftLog, tmp_path: Path) -> None:
    other = SoftLog(tmp_path / "other")
    other.start()
    other.outputs(300)
    other.finish()
    log.finish()
    checkpoint = (other.files.folder / "checkpoint").read_bytes()
    log.files.write("checkpoint", checkpoint)
    report = audited_again(log)
    assert report.log is None
    code, severity, said = only(report)
    assert (code, severity) == (Code.GENESIS, Severity.FALSE)
    assert "makes another origin than the checkpoint states" in said


def test_sizes_beyond_everything_end_where_nothing_is_published(log: SoftLog) -> None:
    from quotary_verifier.tlog.compact import CompactRange

    log.files.tree = CompactRange(1 << 60, [b"p" * 32])
    log.claimed = 1 << 59
    log.commit()
    report = audited(log)
    codes = {finding.code for finding in report.findings}
    assert {Code.RANGE, Code.TREE_UNCHECKED} <= codes
    assert report.exit_code == 1


def test_a_commit_without_the_logs_own_line_is_false_whatever_its_quote_says(log: SoftLog) -> None:
    log.finish()
    items = commits(log)
    commit = Commit.decode(items[7])
    note = parse_note(commit.note)
    items[7] = replace(commit, note=Note(note.text, note.lines[1:]).encode()).encode()
    rewrite(log, items)
    code, severity, said = only(audited_again(log))
    assert (code, severity) == (Code.NOTE, Severity.FALSE)
    assert "no Ed25519 line" in said


def test_a_model_that_was_in_force_between_two_commits_only_is_named(log: SoftLog) -> None:
    log.epoch(("llama", "qwen", "evil"))
    log.epoch(("llama",))
    log.outputs(1)
    code, severity, said = only(audited(log))
    assert (code, severity) == (Code.EPOCHS, Severity.GAP)
    assert "that no commit tells of: evil" in said


def test_a_swap_while_nothing_was_served_is_no_gap(log: SoftLog) -> None:
    log.epoch(("llama", "qwen", "phi"))
    log.epoch(("phi",))
    log.outputs(1)
    assert audited(log).findings == ()


@pytest.mark.parametrize(("pcr", "severity"), [(0, Severity.GAP), (7, Severity.GAP), (9, Severity.NOTICE)])
def test_a_sleep_in_which_the_firmwares_registers_change_may_be_a_boot(
    log: SoftLog, pcr: int, severity: Severity
) -> None:
    log.clock = replace(log.clock, restart_count=1)
    log.pcrs[pcr] = b"p" * 32
    log.outputs(1)
    assert only(audited(log))[:2] == (Code.SLEEP, severity)
