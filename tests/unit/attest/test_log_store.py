# SPDX-License-Identifier: Apache-2.0
"""The store: what it keeps, proves, publishes and forgets."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import rfc6962
import tile_log
from log_batches import append, batch_for, commit_for, leaf_hashes_of

from quotary_attest.log.errors import DamagedError, NotFound
from quotary_attest.log.export import export
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.store import Store
from quotary_verifier.tlog import merkle
from quotary_verifier.tlog.compact import leaf_hashes
from quotary_verifier.tlog.tiles import grown_bundles, grown_tiles
from quotary_verifier.wire import history


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "log")
    yield store
    store.close()


def test_a_new_log_is_empty(store: Store) -> None:
    assert (store.size, store.applied, store.commits, store.last_commit, store.staged()) == (
        0,
        0,
        0,
        None,
        None,
    )
    assert store.report.notes == ()
    assert store.root(0) == merkle.EMPTY_ROOT
    with pytest.raises(NotFound):
        store.serve("checkpoint")


def test_a_staged_batch_reads_back_as_it_was(store: Store) -> None:
    batch = batch_for(store, 5, public=1)
    store.stage(batch)
    found = store.staged()
    assert found is not None
    assert found.encode() == batch.encode()
    assert list(found.records) == batch.records
    assert list(found.output_ids) == batch.output_ids
    assert list(found.times) == batch.times
    assert list(found.request_keys) == batch.request_keys
    assert list(found.aliases) == batch.aliases
    assert (found.start, found.first, found.note) == (0, 0, batch.note)
    assert (found.before, found.digest) == (batch.before, batch.digest)


def test_a_staged_batch_can_be_replaced_and_discarded(store: Store) -> None:
    store.stage(batch_for(store, 2))
    second = batch_for(store, 3)
    store.stage(second)
    found = store.staged()
    assert found is not None
    assert list(found.records) == second.records
    store.discard_staged()
    assert store.staged() is None


def test_only_a_batch_that_continues_the_log_is_staged(store: Store) -> None:
    batch = append(store, 4)
    with pytest.raises(ValueError, match="does not begin where the log ends"):
        store.stage(batch)
    ahead = batch_for(store, 2)
    with pytest.raises(ValueError, match="claims from outside"):
        store.stage(_with(ahead, first=6))


def test_only_the_commit_of_the_batch_is_taken(store: Store) -> None:
    batch, other = batch_for(store, 3), batch_for(store, 3)
    store.stage(batch)
    with pytest.raises(ValueError, match="not the one that was staged"):
        store.commit(commit_for(other), batch)
    with pytest.raises(ValueError, match="not grown by this batch"):
        store.commit(commit_for(batch), batch, store.edge.extended([bytes(32)]))
    assert store.commits == 0


def test_batches_are_applied_in_the_order_of_their_commits(store: Store) -> None:
    first = batch_for(store, 2)
    store.stage(first)
    store.commit(commit_for(first), first)
    second = batch_for(store, 3)
    store.stage(second)
    store.commit(commit_for(second), second)
    with pytest.raises(ValueError, match="not the batch of the next commit"):
        store.apply(second)
    store.apply(first)
    assert (store.size, store.applied) == (5, 2)
    store.apply(second)
    assert (store.size, store.applied, store.unsynced) == (5, 5, 5)


def test_a_commit_counts_before_it_is_applied_and_is_published_after(store: Store) -> None:
    append(store, 3)
    published = store.serve("checkpoint")
    batch = batch_for(store, 4)
    store.stage(batch)
    made = store.commit(commit_for(batch), batch)
    assert store.last_commit == made
    assert (made.number, made.start, made.first, made.size) == (1, 3, 3, 7)
    assert store.staged() is None
    assert store.serve("checkpoint") == published
    assert len(list(history.split(store.serve("history/000")))) == 1
    for attempt in (
        lambda: store.proof(3, 7),
        lambda: store.consistency(3, 7),
        lambda: store.root(7),
        lambda: store.record_at(3),
        lambda: store.commit_of(3),
        lambda: store.serve("tile/0/000.p/7"),
    ):
        with pytest.raises(NotFound):
            attempt()
    store.apply(batch)
    assert store.serve("checkpoint") == made.commit.note
    assert store.commit_of(3) == made


def test_every_leaf_is_proved_against_every_checkpoint_and_they_against_each_other(store: Store) -> None:
    batches = [append(store, count, sync=count % 2 == 0) for count in (1, 1, 7, 120, 127, 1, 2, 255, 64, 300)]
    leaves = leaf_hashes_of(batches)
    sizes = [batch.size for batch in batches]
    for size in sizes:
        root = rfc6962.root_of(leaves[:size])
        assert store.root(size) == root
        for index in {*range(0, size, 37), size - 1}:
            merkle.verify_inclusion(leaves[index], index, size, store.proof(index, size), root)
        for old in [old for old in sizes if old <= size]:
            proof = store.consistency(old, size)
            merkle.verify_consistency(old, rfc6962.root_of(leaves[:old]), size, root, proof)


@pytest.mark.parametrize(("index", "size"), [(5, 5), (-1, 5), (0, 0), (0, 6), (2, 1)])
def test_there_is_no_proof_of_what_is_not_in_the_tree(store: Store, index: int, size: int) -> None:
    append(store, 5)
    with pytest.raises(NotFound):
        store.proof(index, size)


@pytest.mark.parametrize(("size1", "size2"), [(0, 5), (3, 2), (1, 6), (-1, 3)])
def test_there_is_no_consistency_proof_between_sizes_that_are_not(
    store: Store, size1: int, size2: int
) -> None:
    append(store, 5)
    with pytest.raises(NotFound):
        store.consistency(size1, size2)


def test_the_parts_of_an_old_attestation_fit_together(store: Store) -> None:
    batches = [append(store, count) for count in (3, 5, 9)]
    for number, batch in enumerate(batches):
        for place, output_id in enumerate(batch.output_ids):
            assert output_id is not None
            parts = store.parts(output_id)
            assert parts.index == batch.start + place
            assert parts.record == batch.records[place]
            assert parts.request_key == batch.request_keys[place]
            assert (parts.commit.number, parts.commit.commit) == (number, commit_for(batch))
            leaf = merkle.leaf_hash(sha256(parts.record).digest())
            merkle.verify_inclusion(leaf, parts.index, batch.size, parts.path, store.root(batch.size))
    with pytest.raises(NotFound):
        store.parts(b"\xff" * 24)


def test_the_first_output_of_an_id_keeps_it(store: Store) -> None:
    first, second = append(store, 1), batch_for(store, 1)
    again = _with(second, output_ids=first.output_ids)
    store.stage(again)
    store.commit(commit_for(again), again)
    store.apply(again)
    assert first.output_ids[0] is not None
    assert store.output(first.output_ids[0]).record == first.records[0]
    assert store.record_at(1).record == second.records[0]


def test_public_records_are_served_as_blobs_by_their_entry(store: Store) -> None:
    batch = append(store, 4, public=2)
    for record in batch.records[:2]:
        assert store.serve(f"blob/{sha256(record).hexdigest()}") == record
    for record in batch.records[2:]:
        with pytest.raises(NotFound):
            store.serve(f"blob/{sha256(record).hexdigest()}")


def test_every_tile_and_bundle_is_served_in_every_width_that_exists(store: Store) -> None:
    batches = [append(store, count) for count in (200, 56, 300, 44)]
    leaves = leaf_hashes_of(batches)
    entries = [entry for batch in batches for entry in batch.entries()]
    for size in [batch.size for batch in batches]:
        expected = tile_log.hash_tiles(leaf_hashes(entries[:size])) | tile_log.entry_bundles(entries[:size])
        for path, data in expected.items():
            assert store.serve(path) == data
    assert len(leaves) == 600


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/002", "tile/0/002.p/89", "tile/0/003", "tile/1/000", "tile/1/000.p/3", "tile/2/000.p/1",
        "tile/entries/002.p/89", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/0", "tile/0/x000/000",
        "tile/64/000", "tile/-1/000", "tile/0/../0/000", "tile/0/000/", "tile//000", "tile/0/\u0660\u0660\u0660",
        "history/001", "history/000.p/2", "history/", "history/../commits", "history/000\n",
        "blob/", "blob/../records.sqlite", "blob/" + "A" * 64, "blob/" + "0" * 63, "blob/" + "0" * 64,
        "cosigned/", "cosigned/../commits", "cosigned/01", "cosigned/600", "cosigned/-1", "cosigned/" + "9" * 30,
        "", "/", "checkpoint/", "/checkpoint", "records.sqlite", "journal/" + "0" * 20, "../log/entries", "entries",
    ],
)  # fmt: skip
def test_nothing_else_is_served(store: Store, path: str) -> None:
    append(store, 600)
    with pytest.raises(NotFound):
        store.serve(path)


def test_history_files_hold_256_commits_each(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "log")
    batches = [append(store, 1) for _ in range(258)]
    commits = [commit_for(batch) for batch in batches]
    assert [history.Commit.decode(item) for item in history.split(store.serve("history/000"))] == commits[
        :256
    ]
    assert [history.Commit.decode(item) for item in history.split(store.serve("history/001"))] == commits[
        256:
    ]
    assert [history.Commit.decode(item) for item in history.split(store.serve("history/000.p/3"))] == commits[
        :3
    ]
    with pytest.raises(NotFound):
        store.serve("history/001.p/3")
    store.close()
    again = Store.open(tmp_path / "log")
    assert again.report.notes == ()
    assert again.commit_of(256).commit == commits[256]
    assert again.commit_of(255).number == 255
    append(again, 1)
    assert len(list(history.split(again.serve("history/001")))) == 3
    again.close()


def test_history_that_was_altered_or_cut_under_the_agent_is_not_handed_out(store: Store) -> None:
    for _ in range(3):
        append(store, 1)
    path = store.folder / "history/000"
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:-1])
    for attempt in (
        lambda: store.commit_of(0),
        lambda: store.commit_of(2),
        lambda: store.serve("history/000"),
    ):
        with pytest.raises(DamagedError):
            attempt()
    assert store.commit_of(1).number == 1
    path.unlink()
    with pytest.raises(DamagedError):
        store.commit_of(1)


def test_entries_that_were_cut_under_the_agent_are_not_made_up(store: Store) -> None:
    append(store, 9)
    (store.folder / "entries").write_bytes(bytes(64))
    with pytest.raises(DamagedError):
        store.proof(5, 9)


def test_what_an_interrupted_replacement_left_is_removed(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    left = tmp_path / "journal" / f"{0:020}.tmp"
    left.write_bytes(b"half")
    Store.open(tmp_path).close()
    assert not left.exists()


def test_cosigned_notes_are_served_by_size(store: Store) -> None:
    append(store, 6)
    store.put_cosigned(6, b"first")
    store.put_cosigned(6, b"second")
    assert store.serve("cosigned/6") == b"second"
    with pytest.raises(NotFound):
        store.put_cosigned(7, b"of a size that the log does not have")


def test_a_blob_is_kept_once_and_altered_ones_are_noticed(store: Store) -> None:
    digest = store.put_blob(b"a certificate")
    assert digest == sha256(b"a certificate").digest()
    assert store.put_blob(b"a certificate") == digest
    assert store.blob(digest) == store.serve(f"blob/{digest.hex()}") == b"a certificate"
    path = store.folder / "blob" / digest.hex()[:2] / digest.hex()
    path.write_bytes(b"a certificate!")
    with pytest.raises(DamagedError):
        store.blob(digest)
    store.put_blob(b"a certificate")
    assert store.blob(digest) == b"a certificate"


def test_expiry_deletes_old_outputs_and_nothing_else(store: Store) -> None:
    old = append(store, 5, public=1, time=1000)
    mixed = append(store, 4, time=1998)
    new = append(store, 3, time=5000)
    assert store.expire(2000) == 4 + 2
    assert store.expire(2000) == 0
    assert store.record_at(0).record == old.records[0]
    for index in (1, 4, 5, 6):
        with pytest.raises(NotFound):
            store.record_at(index)
    assert store.record_at(7).record == mixed.records[2]
    leaves = leaf_hashes_of([old, mixed, new])
    merkle.verify_inclusion(leaves[1], 1, 12, store.proof(1, 12), rfc6962.root_of(leaves))
    assert store.expire(10_000) == 2 + 3
    assert store.record_at(0).record == old.records[0]


def test_a_deleted_record_is_in_no_file_and_does_not_come_back(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "log")
    secret = append(store, 3, time=1000, record_bytes=300).records[1]
    append(store, 3, time=9000)
    assert any(secret in path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    store.expire(5000)
    assert not any(secret in path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    store.close()
    again = Store.open(tmp_path / "log")
    with pytest.raises(NotFound):
        again.record_at(1)
    again.close()


def test_expiry_works_in_slices_until_nothing_is_left(store: Store) -> None:
    append(store, 1, public=1, time=0)
    for _ in range(5):
        append(store, 2, time=0)
    slices = iter(lambda: store.expire(100, batches=2), 0)
    assert list(slices) == [2, 4, 4]
    assert store.record_at(0)


def test_an_export_serves_the_log_without_the_agent(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "public"
    assert export(store, target) == 0
    for count in (300, 290):
        append(store, count, public=1)
        assert export(store, target) > 0
        size = store.size
        paths = [tile.path for tile in (*grown_tiles(0, size), *grown_bundles(0, size))]
        paths += ["checkpoint", "history/000", *store.paths_beside_tree()]
        for path in paths:
            assert (target / path).read_bytes() == store.serve(path)
    assert export(store, target) == 2, "only the checkpoint and the last history file can change"
    assert not list(target.rglob("*.tmp"))


def test_sync_removes_the_journals_of_what_it_made_durable(store: Store) -> None:
    append(store, 3)
    append(store, 3)
    batch = batch_for(store, 2)
    store.stage(batch)
    assert len(list((store.folder / "journal").iterdir())) == 3
    store.sync()
    assert [path.name for path in (store.folder / "journal").iterdir()] == [f"{6:020}"]
    assert store.unsynced == 0


def test_only_the_owner_can_read_what_is_stored(store: Store) -> None:
    append(store, 3, public=1)
    store.put_cosigned(3, b"note")
    for path in store.folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_readers_see_whole_commits_while_a_thread_writes(store: Store) -> None:
    append(store, 10)
    done = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for round_ in range(60):
                append(store, 40, sync=round_ % 7 == 0, time=round_)
                if round_ % 20 == 19:
                    store.expire(round_ - 30)
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set() or seen < store.applied:
        size = store.applied
        seen = size
        root = store.root(size)
        stored = store.record_at(size - 1)
        leaf = merkle.leaf_hash(sha256(stored.record).digest())
        merkle.verify_inclusion(leaf, size - 1, size, store.proof(size - 1, size), root)
        assert store.commit_of(size - 1).size == size
        note = store.serve("checkpoint")
        published = int(note.split(b"\n")[1])
        assert published >= size
        width = published % 256
        assert not width or len(store.serve(f"tile/0/{published // 256:03}.p/{width}")) == 32 * width
        store.serve("history/000")
    writer.join()
    assert not failures
    assert store.applied == 10 + 60 * 40


def _with(batch: StagedBatch, **changes: object) -> StagedBatch:
    values = {name: getattr(batch, name) for name in StagedBatch.__slots__}
    return StagedBatch(**(values | changes))
