# SPDX-License-Identifier: Apache-2.0
"""How audits run: stopped and continued, shared among processes, over a log that grows, and as a command."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agents import policy_of
from soft_log import SoftLog

from quotary_cli import auditing
from quotary_cli.auditing import Wanted, audit_source, write_state
from quotary_cli.auditworkers import OwnProcess, Processes, reading
from quotary_cli.logsource import open_source
from quotary_cli.main import run
from quotary_cli.output import Failure
from quotary_verifier.audit import stream
from quotary_verifier.audit.boots import OpenLog
from quotary_verifier.audit.commits import CommitsJob
from quotary_verifier.audit.engine import Audit, new_state
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.opening import open_log
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.audit.state import AuditState, decode_state, encode_state
from quotary_verifier.errors import MalformedError, PolicyError
from quotary_verifier.tlog.compact import CompactRange, leaf_hashes
from quotary_verifier.tlog.note import Note, sign_ed25519
from quotary_verifier.wire.history import split

AT = 1_790_000_100


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    log = SoftLog(tmp_path / "log")
    log.start()
    grow(log)
    return log


def grow(log: SoftLog) -> None:
    """A restart, a reboot, and leaves over several tiles."""
    for count in (1, 255, 256, 2, 700):
        log.outputs(count)
    log.start()
    log.outputs(3)
    log.reset()
    log.start()
    for count in (600, 1, 1, 90):
        log.outputs(count)


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of few checkpoints, so that a small log takes many steps."""
    monkeypatch.setattr(stream, "_MAX_CUTS", 2)


def audited(log: SoftLog, **more: object) -> AuditReport:
    wanted = Wanted(str(log.finish()), policy_of(log.origin), AT, **more)  # type: ignore[arg-type]
    return audit_source(wanted)


def steps(log: SoftLog, state: bytes | None) -> Iterator[Audit]:
    """The steps of an audit in this process, begun or continued."""
    with open_source(str(log.files.folder)) as source:
        read = reading(source)
        opened, policy = open_log(read), policy_of(log.origin)
        begun = new_state(opened, policy, AT) if state is None else decode_state(state)
        workers = OwnProcess(opened.record, read, frozenset())
        audit = Audit(opened, policy, begun, read, workers, AT)
        for _ in audit.run():
            yield audit


@pytest.mark.usefixtures("small_jobs")
def test_an_audit_that_stops_at_any_step_and_goes_on_says_the_same(log: SoftLog) -> None:
    log.finish()
    states = [encode_state(audit.state) for audit in steps(log, None)]
    assert len(states) > 5
    *_, whole = steps(log, None)
    expected = whole.report()
    for state in states:
        *_, last = steps(log, state)
        report = last.report()
        assert (report.findings, report.boots, report.starts, report.periods, report.complete) == (
            expected.findings,
            expected.boots,
            expected.starts,
            expected.periods,
            True,
        )
        assert report.outcome == "verified"


def test_a_report_does_not_end_what_it_reports_on(log: SoftLog) -> None:
    log.finish()
    *_, audit = steps(log, None)
    before = encode_state(audit.state)
    assert audit.report() == audit.report()
    assert encode_state(audit.state) == before


def test_an_audit_of_a_grown_log_reads_only_what_is_new(log: SoftLog, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = audited(log, state=state)
    assert first.log is not None
    for number in range(1, first.log.size // 256):  # the first one has the genesis record
        (log.files.folder / f"tile/entries/00{number}").unlink()
    grow(log)
    second = audited(log, state=state)
    assert second.outcome == "verified"
    assert second.log is not None
    assert (second.log.resumed, second.log.size) == (first.log.size, log.size)
    assert any(f"below {first.log.size}" in text for text in second.unknowable)


def test_a_log_that_shrank_since_the_last_audit_was_rolled_back(log: SoftLog, tmp_path: Path) -> None:
    state = tmp_path / "state"
    checkpoint = (log.finish() / "checkpoint").read_bytes()
    grow(log)
    assert audited(log, state=state).outcome == "verified"
    log.files.write("checkpoint", checkpoint)
    report = audit_source(Wanted(str(log.files.folder), policy_of(log.origin), AT, state=state))
    (found,) = report.findings
    assert (found.code, found.severity) == (Code.CHECKPOINT, Severity.FALSE)
    assert "rolled back or split" in found.message


def test_a_tree_that_goes_on_from_other_leaves_does_not_continue_an_earlier_audit(
    log: SoftLog, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    audited(log, state=state)
    assert log.size % 256
    files = log.files
    files.entries[0] = b"x" * 32
    files.rows[0][0] = leaf_hashes([b"x" * 32])
    files.tree = CompactRange()
    for level in reversed(range(len(files.rows))):
        files.tree.append(b"".join(files.rows[level]), 8 * level)
    size = log.size
    log.outputs(5)
    (found,) = audited(log, state=state).findings  # all that is new holds by itself
    assert (found.code, found.severity) == (Code.ROOT, Severity.FALSE)
    assert f"the first {size} leaves are not those of the earlier audit" in found.message


def test_a_published_checkpoint_of_another_tree_than_the_historys_is_false(log: SoftLog) -> None:
    text = log.text(b"r" * 32)
    log.note = Note(text, (sign_ed25519(text, log.origin, log.note_key),)).encode()
    (found,) = audited(log).findings
    assert (found.code, found.severity) == (Code.CHECKPOINT, Severity.FALSE)
    assert "another root than the history's commit" in found.message


def test_the_state_of_an_audit_that_ends_early_is_kept_and_it_goes_on_when_the_rest_is_there(
    log: SoftLog, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    whole = (log.finish() / "history/000").read_bytes()
    log.files.write("history/000", b"".join(list(split(whole))[:-3]))
    first = audit_source(Wanted(str(log.files.folder), policy_of(log.origin), AT, state=state))
    assert (first.outcome, first.complete) == ("could-not-check", False)
    log.files.write("history/000", whole)
    second = audit_source(Wanted(str(log.files.folder), policy_of(log.origin), AT, state=state))
    assert (second.outcome, second.findings) == ("verified", ())
    assert second.log is not None
    assert first.log is not None
    assert second.log.resumed == first.log.size


def test_a_state_of_another_log_or_policy_or_a_damaged_one_is_refused(log: SoftLog, tmp_path: Path) -> None:
    state = tmp_path / "state"
    audited(log, state=state)
    other = SoftLog(tmp_path / "other")
    other.start()
    with pytest.raises(Failure, match="it is of the log"):
        audited(other, state=state)
    with pytest.raises(Failure, match="it is of another policy"):
        audit_source(Wanted(str(log.files.folder), policy_of(log.origin, "version = 2\n"), AT, state=state))
    data = state.read_bytes()
    for damaged in (b"", b"{}", data[:-40], data.replace(b"false", b"true "), b"[" * 100_000):
        state.write_bytes(damaged)
        with pytest.raises(Failure, match=r"state of (an|the) audit"):
            audited(log, state=state)
    with pytest.raises(MalformedError):
        decode_state(data[:50])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: setattr(state, "tiles", state.tiles + 1),
        lambda state: setattr(state, "rows", [row + row for row in state.rows]),
        lambda state: setattr(state.history.position, "commits", -1),
        lambda state: setattr(state.history.position, "size", 1 << 64),
        lambda state: setattr(state.history.open.periods[0], "attest", b"none"),
        lambda state: state.history.open.logs.update(ima=OpenLog({10: b"a" * 32})),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(
    log: SoftLog, tmp_path: Path, change: Callable[[AuditState], object]
) -> None:
    log.outputs(600)
    state = tmp_path / "state"
    audited(log, state=state)
    held = decode_state(state.read_bytes())
    change(held)
    state.write_bytes(encode_state(held))
    with pytest.raises(Failure, match="contradict each other"):
        audited(log, state=state)


def test_the_engine_takes_no_state_of_another_policy(log: SoftLog) -> None:
    log.finish()
    with open_source(str(log.files.folder)) as source:
        read = reading(source)
        opened, policy = open_log(read), policy_of(log.origin)
        state = new_state(opened, policy_of(log.origin, "version = 2\n"), AT)
        workers = OwnProcess(opened.record, read, frozenset())
        with pytest.raises(PolicyError):
            Audit(opened, policy, state, read, workers, AT)


def test_processes_that_share_the_work_come_to_the_same(
    log: SoftLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = audited(log)
    monkeypatch.setattr(auditing, "_ALONE", 0)
    assert audited(log, processes=2) == alone
    (log.files.folder / "tile/0/002").unlink()
    (log.files.folder / "tile/0/002").mkdir()
    wanted = Wanted(str(log.files.folder), policy_of(log.origin), AT, processes=2)
    with pytest.raises(Failure, match="not a plain file"):
        audit_source(wanted)


def test_a_process_that_cannot_read_the_source_or_is_killed_ends_the_audit_with_a_message(
    log: SoftLog, tmp_path: Path
) -> None:
    folder = log.finish()
    with open_source(str(folder)) as source:
        genesis = open_log(reading(source)).record
    nowhere = Processes(str(tmp_path / "nowhere"), genesis, frozenset(), 1)
    with nowhere as workers, pytest.raises(Failure, match="no log is there"):
        next(workers.commits([CommitsJob(0)]))
    with Processes(str(folder), genesis, frozenset(), 1) as workers:
        assert len(next(workers.commits([CommitsJob(0)])).commits) > 5
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        for _ in range(2):  # the first finds it out, the second knows
            with pytest.raises(Failure, match="ended from outside"):
                next(workers.commits([CommitsJob(0)]))


def test_a_state_is_written_whole_or_not_at_all(log: SoftLog, tmp_path: Path) -> None:
    state = tmp_path / "state"
    audited(log, state=state)
    before = state.read_bytes()
    (tmp_path / "state.tmp").mkdir()
    *_, audit = steps(log, None)
    with pytest.raises(Failure):
        write_state(state, audit.state)
    assert state.read_bytes() == before


def test_the_command_prints_one_object_a_page_or_text_and_its_exit_code(
    log: SoftLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = str(log.finish()), tmp_path / "audit.html"
    policy = tmp_path / "policy.toml"
    head = 'schema = "quotary-policy/v1"\n'
    policy.write_text(f'{head}[[pin]]\norigin = "{log.origin}"\n')
    words = ["audit", folder, "--policy", str(policy), "--at", str(AT)]
    assert run([*words, "--json", "--html", str(page), "--resume", str(tmp_path / "state")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["exit"], report["log"]["size"]) == ("quotary-audit/v1", 0, log.size)
    assert "<!doctype html>" in page.read_text()
    assert run(words) == 0
    assert log.origin.partition("/")[0] in capsys.readouterr().out
    policy.write_text(f'{head}[[pin]]\norigin = "{log.origin[:-4]}aaaa"\n')
    assert run(words) == 1
    assert run([*words, "--resume", str(tmp_path / "state")]) == 2
    (log.files.folder / "tile/entries/001").unlink()
    (log.files.folder / "tile/0/001").unlink()
    policy.write_text(f'{head}[[pin]]\norigin = "{log.origin}"\n')
    assert run(words) == 3
    (log.files.folder / "checkpoint").unlink()
    assert run(words) == 3


def test_the_specification_has_every_code_and_every_member_of_a_report(log: SoftLog) -> None:
    text = (Path(__file__).parents[3] / "docs" / "spec" / "audit.md").read_text()
    report = audited(log).as_json()
    parts = [report, *(report[name][0] for name in ("boots", "starts", "periods")), report["log"]]
    named = {str(code) for code in Code} | {name for part in parts for name in part}
    assert [name for name in sorted(named) if f"`{name}`" not in text] == []


class Terminal(io.StringIO):
    """Standard error where a person looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("small_jobs")
def test_progress_is_shown_to_people_only(log: SoftLog, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(auditing.sys, "stderr", shown)
    assert audited(log).outcome == "verified"
    assert shown.getvalue() == ""
    assert audited(log, progress=True).outcome == "verified"
    assert f"{log.size}/{log.size}" in shown.getvalue()
    monkeypatch.setattr(auditing.sys, "stderr", io.StringIO())
    assert audited(log, progress=True).outcome == "verified"
    assert auditing.sys.stderr.getvalue() == ""
