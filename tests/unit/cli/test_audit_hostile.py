# SPDX-License-Identifier: Apache-2.0
"""Whatever byte of a log is another, or missing: no audit of it fails, and none says that it was verified."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from agents import policy_of
from forge import Authority
from served_logs import serving_files
from soft_log import HOST, SoftLog

from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.policy.load import load_policy
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.declaration import Declaration, Service

AT = 1_795_435_200
STATED = Declaration.of([Service(("/v1/chat/completions",))]).text


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    log = SoftLog(tmp_path / "log")
    log.start()
    log.state(STATED)
    log.outputs(200)
    log.start()
    log.outputs(120)
    log.reset()
    log.start(lost=[b"l" * 32])
    log.outputs(40)
    log.finish()
    return log


def audited(folder: Path, log: SoftLog) -> AuditReport:
    return audit_source(Wanted(str(folder), policy_of(log.origin), AT))


def files_of(log: SoftLog) -> list[str]:
    """All published files that an audit reads, but for partial tiles that the log has outgrown."""
    folder = log.files.folder
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def covered(path: str, data: bytes) -> range:
    """The bytes of a file of which an audit says something: of the checkpoint not the copy of its quote."""
    return range(len(data) if path != "checkpoint" else data.index(b"\n\n") + 40)


def test_no_byte_of_a_log_can_be_another_in_a_history_that_is_verified(log: SoftLog) -> None:
    assert audited(log.files.folder, log).outcome == "verified"
    choice = random.Random(7)
    for path in files_of(log):
        place = log.files.folder / path
        data = place.read_bytes()
        places = covered(path, data)
        for at in {0, places[-1], *choice.sample(places, min(5, len(places)))}:
            changed = bytearray(data)
            changed[at] ^= 1 << choice.randrange(8)
            place.write_bytes(changed)
            report = audited(log.files.folder, log)
            assert report.outcome != "verified", (path, at)
            assert report.findings
        place.write_bytes(data)


def test_a_file_that_is_missing_cut_or_longer_is_never_verified_and_never_an_error(log: SoftLog) -> None:
    withheld = 0
    for path in files_of(log):
        place = log.files.folder / path
        data = place.read_bytes()
        for changed in (None, b"", data[:-1], data[: len(data) // 2], data + b"\0", data + data):
            if changed is None:
                place.unlink()
            else:
                place.write_bytes(changed)
            report = audited(log.files.folder, log)
            if report.outcome != "verified":
                assert report.findings, (path, changed)
            elif path.startswith("history/"):
                assert changed == data + data  # what follows the published checkpoint is of a later audit
            else:  # a start within a boot, or a statement, may be withheld: the next start shows it
                assert (path.partition("/")[0], changed) == ("blob", None)
                withheld += 1
        place.write_bytes(data)
    assert withheld == 1 + 1  # the statement, and the boot record of the second start


def test_an_empty_folder_and_nonsense_for_a_checkpoint_could_not_be_audited(
    tmp_path: Path, log: SoftLog
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert audited(folder, log).exit_code == 3
    for nonsense in (b"", b"\n\n", b"x" * 70_000, log.note.replace(b"\n", b"\r\n")):
        (folder / "checkpoint").write_bytes(nonsense)
        report = audited(folder, log)
        assert (report.exit_code, report.log) == (1, None)


def test_a_server_gives_the_same_report_as_the_folder_and_says_what_it_cannot_list(log: SoftLog) -> None:
    folder = log.files.folder
    files = {path: (folder / path).read_bytes() for path in files_of(log)}
    by_folder = audited(folder, log)
    with serving_files(files, "/quotary/v1/") as served:
        by_server = audit_source(Wanted(served.url, policy_of(log.origin), AT))
    assert by_server.findings == by_folder.findings
    assert (by_server.boots, by_server.starts, by_server.periods, by_server.statements) == (
        by_folder.boots,
        by_folder.starts,
        by_folder.periods,
        by_folder.statements,
    )
    assert any("this source cannot list" in text for text in by_server.unknowable)


def test_certificates_are_judged_and_one_that_is_missing_or_of_another_log_is_told(tmp_path: Path) -> None:
    authority = Authority()
    for case in ("fits", "missing", "other"):
        log = SoftLog(tmp_path / case)
        key = log.key.public.public_key()
        origin = log.origin if case != "other" else f"{HOST}/{'a' * 32}"
        log.certificates = (log.put(authority.issue(key, HOST, origin)),)  # type: ignore[arg-type]
        log.start()
        folder = log.finish()
        if case == "missing":
            (folder / f"blob/{log.certificates[0].hex()}").unlink()
        head = f'schema = "quotary-policy/v1"\n[[authority]]\nname = "CA"\ncertificates = """\n{authority.pem}"""\n'
        pinned = f'{head}[[pin]]\norigin = "{log.origin}"\n'
        strict, lenient = (
            audit_source(Wanted(str(folder), load_policy(text.encode()), AT)) for text in (head, pinned)
        )
        codes = [(finding.code, finding.severity) for finding in strict.findings]
        if case == "fits":
            assert (codes, strict.periods[0].endorsed_by) == ([], "CA")
        elif case == "missing":
            assert codes == [(Code.ENDORSEMENT, Severity.COULD_NOT)]
        else:
            assert codes == [(Code.ENDORSEMENT, Severity.POLICY)]
            (found,) = lenient.findings
            assert (lenient.outcome, found.severity) == ("verified", Severity.NOTICE)
            assert "for another log of this host" in found.message


def test_a_second_log_under_one_key_shows_where_an_attestation_of_it_is_given(
    log: SoftLog, tmp_path: Path
) -> None:
    from quotary_verifier.tlog.merkle import leaf_hash
    from quotary_verifier.wire.attestation import Attestation, TpmSupport
    from quotary_verifier.wire.history import Commit, split
    from quotary_verifier.wire.records import Statement, entry_of

    other = SoftLog(tmp_path / "other", key=log.key)
    other.start()
    folder = other.finish()
    (commit,) = (Commit.decode(item) for item in split((folder / "history/000").read_bytes()))
    entries = (folder / "tile/entries/000.p/2").read_bytes()
    genesis = (folder / f"blob/{entries[2:34].hex()}").read_bytes()
    record = Statement(b"s" * 16, 1, "{}").encode()
    support = TpmSupport(commit.supports[0].identifier, {}, bytes(32), (), ())
    attestation = Attestation(
        record, genesis, 1, leaf_hash(entry_of(genesis)), commit.note, (support,)
    ).encode()
    held = tmp_path / "held"
    held.mkdir()
    (held / "other.attestation").write_bytes(attestation)
    assert parse_note(commit.note).text.startswith(other.origin.encode())
    report = audit_source(Wanted(str(log.files.folder), policy_of(log.origin), AT, records=(held,)))
    assert {(f.code, f.severity) for f in report.findings} >= {(Code.SPLIT, Severity.GAP)}
    shutil.rmtree(folder)
