# SPDX-License-Identifier: Apache-2.0
"""A disk that is full or fails at any call: a typed error, the state before it readable, and a way on."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from log_batches import append, batch_for, commit_for
from power_cut import Disk

from quotary_attest.log import durable
from quotary_attest.log.errors import NotFound, StorageFailed, StorageFull, StoreError
from quotary_attest.log.store import Store


def _calls_of_a_commit(folder: Path) -> int:
    store = Store.open(folder)
    append(store, 300)
    with Disk(folder) as disk:
        append(store, 300, public=1, sync=True)
    store.close()
    return disk.calls


def _error_of(step: Callable[[], object]) -> type[StoreError] | None:
    try:
        step()
    except StoreError as error:
        return type(error)
    return None


def test_a_full_disk_stops_any_write_and_none_before_it_is_lost(tmp_path: Path) -> None:
    total = _calls_of_a_commit(tmp_path / "first")
    assert total > 15
    final = 0
    for fail_at in range(1, total + 1):
        folder = tmp_path / f"log{fail_at}"
        store = Store.open(folder)
        before = append(store, 300)
        batch = batch_for(store, 300, public=1)
        steps = [
            lambda store=store, batch=batch: store.stage(batch),
            lambda store=store, batch=batch: store.commit(commit_for(batch), batch),
            lambda store=store, batch=batch: store.apply(batch),
            store.sync,
        ]
        done = 0
        with Disk(folder, fail_at, OSError(errno.ENOSPC, "No space left on device")):
            error = None
            for step in steps:
                error = _error_of(step)
                if error is not None:
                    break
                done += 1
            assert store.record_at(299).record == before.records[299]
            assert store.serve("checkpoint") == commit_for(batch if done == 3 else before).note
            assert store.size == (600 if done >= 2 else 300)
            if error is StorageFull:
                for step in steps[done:]:
                    step()
            else:
                assert error is StorageFailed
                final += 1
                assert done == 3, "only an fsync of what is not written again is final"
                with pytest.raises(StorageFailed):
                    store.sync()
                store.close()
                store = Store.open(folder)
        assert store.applied == 600
        assert store.root(600) == store.edge.root
        assert store.record_at(599).record == batch.records[299]
        store.close()
    assert final > 0


def test_after_a_failed_fsync_nothing_is_written_until_the_store_is_opened_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    batch = append(store, 5)
    with Disk(tmp_path, 1, OSError(errno.EIO, "Input/output error")), pytest.raises(StorageFailed):
        store.sync()
    for attempt in (
        store.sync,
        lambda: store.stage(batch_for(store, 1)),
        lambda: store.expire(0),
    ):
        with pytest.raises(StorageFailed, match="failed before"):
            attempt()
    assert store.record_at(4).record == batch.records[4]
    store.close()
    again = Store.open(tmp_path)
    assert again.report.notes == ("restored 5 leaves from the journal",)
    append(again, 1)
    again.close()


def test_journals_stay_until_the_rows_are_durable(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    append(store, 5)
    with Disk(tmp_path) as counting:
        store.sync()
    batch = append(store, 5)
    # the last calls of a sync are that of the rows and the removal of one journal
    failing = Disk(tmp_path, counting.calls - 1, OSError(errno.ENOSPC, "full"))
    with failing, pytest.raises(StorageFull):
        store.sync()
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [f"{batch.start:020}"]
    store.sync()
    assert not list((tmp_path / "journal").iterdir())
    store.close()


def test_rows_that_do_not_fit_can_be_inserted_when_there_is_space_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    before = append(store, 5, sync=True)
    batch = batch_for(store, 300)
    store.stage(batch)
    store.commit(commit_for(batch), batch)
    database = store._records._writer
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    (limit,) = database.execute("PRAGMA max_page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageFull):
        store.apply(batch)
    assert (store.size, store.applied) == (305, 5)
    assert store.record_at(4).record == before.records[4]
    database.execute(f"PRAGMA max_page_count = {limit}")
    store.apply(batch)
    assert store.record_at(304).record == batch.records[299]
    store.close()


CHILD = """
import resource, sys
from pathlib import Path
from log_batches import append, batch_for, commit_for
from quotary_attest.log.errors import StorageFull, StorageFailed
from quotary_attest.log.store import Store

store = Store.open(Path(sys.argv[1]))
record_bytes = int(sys.argv[3])
append(store, 50, sync=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
step = "none"
try:
    for _ in range(200):
        batch = batch_for(store, 50, record_bytes=record_bytes)
        step = "stage"
        store.stage(batch)
        step = "commit"
        store.commit(commit_for(batch), batch)
        print("committed", store.size)
        step = "apply"
        store.apply(batch)
except (StorageFull, StorageFailed) as error:
    store.record_at(store.applied - 1)
    print("stopped", step, type(error).__name__)
"""


@pytest.mark.parametrize(
    ("limit", "record_bytes", "step"),
    [(20_000, 600, "stage"), (60_000, 40, "apply"), (200_000, 40, "apply")],
)
def test_a_file_size_limit_is_met_like_a_full_disk(
    tmp_path: Path, limit: int, record_bytes: int, step: str
) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "log"), str(limit), str(record_bytes)],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "support")},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = child.stdout.splitlines()
    assert lines[-1].startswith(f"stopped {step}"), child.stdout
    committed = [int(line.split()[1]) for line in lines if line.startswith("committed")]
    store = Store.open(tmp_path / "log")
    assert store.size == (committed[-1] if committed else 50)
    assert store.record_at(store.size - 1)
    append(store, 3)
    store.close()


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed, match="cannot create file"):
        Store.open(tmp_path / "file" / "log")


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "elsewhere").write_bytes(bytes(64))
    (tmp_path / "log" / "entries").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        Store.open(tmp_path / "log")


def test_a_replaced_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.replace_file(path, b"old")
    with Disk(tmp_path) as counting:
        durable.replace_file(path, b"new one")
    for fail_at in range(1, counting.calls + 1):
        durable.replace_file(path, b"old")
        with Disk(tmp_path, fail_at, OSError(errno.ENOSPC, "full")), pytest.raises(StorageFull):
            durable.replace_file(path, b"new one")
        assert path.read_bytes() in (b"old", b"new one")
        durable.replace_file(path, b"newer")
        assert path.read_bytes() == b"newer"


def test_reading_a_file_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert durable.read_file(tmp_path / "absent", max_bytes=10) is None
    store = Store.open(tmp_path / "log")
    with pytest.raises(NotFound):
        store.blob(bytes(32))
    store.close()
