# SPDX-License-Identifier: Apache-2.0
"""Opening a store after every kind of interruption: nothing acknowledged is lost, nothing else counts."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest
import rfc6962
from log_batches import append, batch_for, commit_for, leaf_hashes_of
from power_cut import Disk, PowerCut

from quotary_attest.log.errors import DamagedError, NotFound
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.store import Store

JOURNAL_OF_5 = f"journal/{5:020}"


def check(store: Store, batches: list[StagedBatch]) -> None:
    """The store holds exactly these batches, and proves, finds and publishes all of them."""
    leaves = leaf_hashes_of(batches)
    assert store.size == store.applied == len(leaves)
    assert store.unsynced == 0
    root = rfc6962.root_of(leaves)
    assert store.edge.root == store.root(store.size) == root
    assert store.commits == len(batches)
    for batch in batches:
        for place, record in enumerate(batch.records):
            assert store.record_at(batch.start + place).record == record
        last = batch.size - 1
        assert store.proof(last, store.size) == rfc6962.inclusion_path(last, leaves)
        assert store.commit_of(last).commit == commit_for(batch)
    if batches:
        assert store.serve("checkpoint") == commit_for(batches[-1]).note


def reopen_and_go_on(folder: Path, batches: list[StagedBatch]) -> tuple[str, ...]:
    """Open, check, append, close, open and check again; return what opening reported."""
    store = Store.open(folder)
    notes = store.report.notes
    check(store, batches)
    store.discard_staged()
    more = append(store, 3)
    store.close()
    again = Store.open(folder)
    assert again.report.notes == ()
    check(again, [*batches, more])
    again.close()
    return notes


@pytest.fixture
def two_committed_one_staged(tmp_path: Path) -> tuple[Path, list[StagedBatch], StagedBatch]:
    """A folder as kill -9 leaves it after two commits, of which only the first was synced, and one stage."""
    store = Store.open(tmp_path / "log")
    batches = [append(store, 2, sync=True, public=1), append(store, 3)]
    staged = batch_for(store, 2)
    store.stage(staged)
    shutil.copytree(tmp_path / "log", tmp_path / "dead")
    store.close()
    return tmp_path / "dead", batches, staged


Interrupted = tuple[Path, list[StagedBatch], StagedBatch]


def test_a_killed_store_goes_on_with_what_was_staged(two_committed_one_staged: Interrupted) -> None:
    folder, batches, staged = two_committed_one_staged
    store = Store.open(folder)
    assert store.report.notes == ("restored 3 leaves from the journal",)
    assert store.report.restored == 3
    check(store, batches)
    found = store.staged()
    assert found is not None
    assert found.encode() == staged.encode()
    store.commit(commit_for(staged), found)
    store.apply(found)
    store.close()
    reopen_and_go_on(folder, [*batches, staged])


def test_a_journal_cut_at_any_byte_was_never_staged(two_committed_one_staged: Interrupted) -> None:
    folder, batches, _ = two_committed_one_staged
    path = folder / JOURNAL_OF_5
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        store = Store.open(folder)
        assert store.staged() is None
        assert "removed a batch at leaf 5 that was not completely staged" in store.report.notes
        assert not path.exists()
        store.close()
    path.write_bytes(whole)
    reopen_and_go_on(folder, batches)


def test_a_journal_with_any_byte_altered_was_never_staged(two_committed_one_staged: Interrupted) -> None:
    folder, _, _ = two_committed_one_staged
    path = folder / JOURNAL_OF_5
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        store = Store.open(folder)
        assert store.staged() is None
        store.close()


def _in_history_only(tmp_path: Path) -> tuple[Path, list[StagedBatch], StagedBatch]:
    """A folder whose last commit is in the history and neither applied nor followed by a stage."""
    store = Store.open(tmp_path / "log")
    batches = [append(store, 2, sync=True), append(store, 3)]
    last = batch_for(store, 2)
    store.stage(last)
    store.commit(commit_for(last), last)
    shutil.copytree(tmp_path / "log", tmp_path / "dead")
    store.close()
    return tmp_path / "dead", batches, last


@pytest.mark.parametrize("name", ["history/000", "commits"])
def test_a_history_cut_at_any_byte_of_its_last_commit_ends_before_it(tmp_path: Path, name: str) -> None:
    folder, batches, last = _in_history_only(tmp_path)
    whole = (folder / name).read_bytes()
    tail = 64 if name == "commits" else len(commit_for(last).encode())
    for length in range(len(whole) - tail, len(whole)):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(whole[:length])
        store = Store.open(copy)
        assert any("cut" in note for note in store.report.notes)
        check(store, batches)
        found = store.staged()
        assert found is not None
        assert found.encode() == last.encode()
        store.commit(commit_for(last), found)
        store.apply(found)
        check_after_sync(store, [*batches, last])
        store.close()
        shutil.rmtree(copy)
    notes = reopen_and_go_on(folder, [*batches, last])
    assert notes == ("restored 5 leaves from the journal",)


def check_after_sync(store: Store, batches: list[StagedBatch]) -> None:
    """As `check`, for a store that goes on."""
    store.sync()
    check(store, batches)


@pytest.mark.parametrize("name", ["history/000", "commits"])
def test_a_last_commit_with_any_byte_lost_does_not_count(tmp_path: Path, name: str) -> None:
    folder, batches, last = _in_history_only(tmp_path)
    whole = (folder / name).read_bytes()
    tail = 64 if name == "commits" else len(commit_for(last).encode())
    for place in range(len(whole) - tail, len(whole), 3):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        store = Store.open(copy)
        check(store, batches)
        store.close()
        shutil.rmtree(copy)


@pytest.mark.parametrize("extra", [b"\x00", b"\xa5", bytes(64), bytes(5000)])
def test_bytes_after_the_last_commit_are_cut(tmp_path: Path, extra: bytes) -> None:
    folder, batches, last = _in_history_only(tmp_path)
    with (folder / "history/000").open("ab") as file:
        file.write(extra)
    notes = reopen_and_go_on(folder, [*batches, last])
    assert f"cut {len(extra)} bytes after the last whole commit from history file 0" in notes


def test_a_file_begun_for_a_commit_that_never_counted_is_emptied(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "log")
    batches = [append(store, 1) for _ in range(256)]
    store.close()
    (tmp_path / "log/history/001").write_bytes(b"\xa5\x00\x11")
    notes = reopen_and_go_on(tmp_path / "log", batches)
    assert notes == ("cut 3 bytes after the last whole commit from history file 1",)


@pytest.mark.parametrize("name", ["entries", "tiles.1"])
def test_entries_and_tiles_that_were_not_synced_are_written_again(tmp_path: Path, name: str) -> None:
    store = Store.open(tmp_path / "log")
    batches = [append(store, 300, sync=True), append(store, 300)]
    shutil.copytree(tmp_path / "log", tmp_path / "dead")
    store.close()
    whole = (tmp_path / "dead" / name).read_bytes()
    durable = 300 * 32 if name == "entries" else 32
    for data in (
        whole[:durable],
        whole[: durable + 1],
        whole[:durable] + bytes(len(whole) - durable),
        whole + b"\xff" * 100,
    ):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "dead", copy)
        (copy / name).write_bytes(data)
        reopen_and_go_on(copy, batches)
        shutil.rmtree(copy)


def test_tiles_that_are_gone_are_made_again_from_the_entries(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "log")
    batches = [append(store, 700), append(store, 100)]
    store.close()
    (tmp_path / "log/tiles.1").unlink()
    reopen_and_go_on(tmp_path / "log", batches)


def test_entries_that_are_gone_are_made_again_from_the_records(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "log")
    batches = [append(store, 700, public=1), append(store, 100)]
    store.close()
    (tmp_path / "log/entries").write_bytes(b"")
    assert reopen_and_go_on(tmp_path / "log", batches) == (
        "derived 800 entries that were missing from the records",
    )


def test_lost_records_are_reported_and_the_tree_goes_on(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "log")
    leaves = leaf_hashes_of([append(store, 5), append(store, 4)])
    store.close()
    for path in (tmp_path / "log").glob("records.sqlite*"):
        path.unlink()
    again = Store.open(tmp_path / "log")
    assert again.report.notes == (
        "records.sqlite is new: the records of 9 leaves are lost, their entries are not",
    )
    assert again.root(9) == rfc6962.root_of(leaves)
    with pytest.raises(NotFound):
        again.record_at(3)
    append(again, 2)
    again.close()


def _remove_entries(folder: Path) -> None:
    (folder / "entries").write_bytes(b"")
    for path in folder.glob("records.sqlite*"):
        path.unlink()


def _alter_entry(folder: Path) -> None:
    data = bytearray((folder / "entries").read_bytes())
    data[40] ^= 1
    (folder / "entries").write_bytes(data)


def _swap_journals(folder: Path) -> None:
    (folder / f"journal/{4:020}").write_bytes((folder / f"journal/{2:020}").read_bytes())


def _newer_schema(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "records.sqlite")) as database:
        database.execute("PRAGMA user_version = 4")


def _unreadable_commit(folder: Path) -> None:
    """A commit of another kind whose checksum is right: written by no version of this code."""
    index = bytearray((folder / "commits").read_bytes())
    history = bytearray((folder / "history/000").read_bytes())
    place = bytes(index[-64:-32])
    offset = int.from_bytes(place[24:28])
    history[offset + 2] = 0x12
    index[-32:] = sha256(place + history[offset:]).digest()
    (folder / "commits").write_bytes(index)
    (folder / "history/000").write_bytes(history)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the history is empty": lambda folder: (folder / "commits").write_bytes(b""),
    "two commits are gone": lambda folder: (folder / "history/000").write_bytes(b"\xa5"),
    "entries and records are gone": _remove_entries,
    "an entry was altered": _alter_entry,
    "the journal of a commit is gone": lambda folder: (folder / f"journal/{2:020}").unlink(),
    "the journal of a commit is of another one": _swap_journals,
    "the records are no database": lambda folder: (folder / "records.sqlite").write_bytes(b"x" * 8192),
    "the records are of a newer agent": _newer_schema,
    "the last commit is none": _unreadable_commit,
    "a batch is staged beyond the end": lambda folder: (folder / f"journal/{9:020}").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_no_crash_explains_is_refused(tmp_path: Path, damage: str) -> None:
    store = Store.open(tmp_path / "log")
    append(store, 2, sync=True)
    append(store, 2)
    append(store, 2)
    shutil.copytree(tmp_path / "log", tmp_path / "dead")
    store.close()
    DAMAGE[damage](tmp_path / "dead")
    with pytest.raises(DamagedError):
        Store.open(tmp_path / "dead")


def _history(store: Store, acknowledged: list[StagedBatch], staged: list[StagedBatch]) -> None:
    """A run whose acknowledged batches and staged batch are noted as the calls return."""
    store.put_blob(b"certificate")
    for number, count in enumerate((1, 3, 257, 2, 4)):
        if number == 3:
            store.stage(batch_for(store, 1))
        batch = batch_for(store, count, public=number == 0)
        store.stage(batch)
        staged[:] = [batch]
        store.commit(commit_for(batch), batch)
        acknowledged.append(batch)
        staged.clear()
        if number != 2:
            continue
        store.apply(acknowledged[0])
        store.sync()
        store.apply(acknowledged[1])
        store.apply(acknowledged[2])
    store.apply(acknowledged[3])
    store.sync()
    store.apply(acknowledged[4])
    store.sync()


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_no_power_cut_loses_what_was_acknowledged(tmp_path: Path, stride: int) -> None:
    root = tmp_path / "log"
    total = _calls(root)
    assert total > 60
    for fail_at in range(1, total + 2, stride):
        shutil.rmtree(root)
        acknowledged: list[StagedBatch] = []
        staged: list[StagedBatch] = []
        with Disk(root, fail_at) as disk:
            with suppress(PowerCut):
                _history(Store.open(root), acknowledged, staged)
            cuts = []
            for database, removals in ((False, False), (False, True), (True, True)):
                cuts.append(tmp_path / f"cut{len(cuts)}")
                disk.cut(cuts[-1], database_survives=database, removals_survive=removals)
        for cut in cuts:
            _check_after_power_cut(cut, acknowledged, staged)


def _check_after_power_cut(folder: Path, acknowledged: list[StagedBatch], staged: list[StagedBatch]) -> None:
    store = Store.open(folder)
    # what sync called durable needs nothing derived again: the records for that may have expired
    assert not any("derived" in note or "lost" in note for note in store.report.notes)
    kept = store.commits
    # a commit whose answer never came back may have reached the disk
    assert kept in (len(acknowledged), len(acknowledged) + len(staged))
    check(store, [*acknowledged, *staged][:kept])
    if staged and kept == len(acknowledged):
        found = store.staged()
        assert found is not None
        assert found.encode() == staged[0].encode()
    if acknowledged:
        assert store.serve(f"blob/{sha256(acknowledged[0].records[0]).hexdigest()}")
        assert store.serve(f"blob/{sha256(b'certificate').hexdigest()}")
    store.discard_staged()
    append(store, 2)
    store.close()


def _calls(root: Path) -> int:
    """How many calls of the run change the disk."""
    root.mkdir()
    with Disk(root) as disk:
        store = Store.open(root)
        _history(store, [], [])
    store.close()
    return disk.calls


CHILD = """
import sys
from pathlib import Path
from log_batches import batch_for, commit_for
from quotary_attest.log.store import Store

store = Store.open(Path(sys.argv[1]))
for number in range(10_000):
    batch = batch_for(store, 1 + number % 5)
    store.stage(batch)
    store.commit(commit_for(batch), batch)
    sys.stdout.write(f"{store.size} {store.edge.root.hex()}\\n")
    sys.stdout.flush()
    store.apply(batch)
    if number % 4 == 3:
        store.sync()
"""


def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    support = Path(__file__).parents[2] / "support"
    for lines in (1, 2, 5, 9, 30, 61):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "log")],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(support)},
            text=True,
        )
        assert child.stdout is not None
        for _ in range(lines):
            last = child.stdout.readline()
        child.kill()
        rest = child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
        size, root = [line for line in [last, *rest] if line.endswith("\n")][-1].split()
        store = Store.open(tmp_path / "log")
        assert store.size >= int(size)
        assert store.root(int(size)).hex() == root
        store.record_at(int(size) - 1)
        store.close()
