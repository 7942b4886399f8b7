# SPDX-License-Identifier: Apache-2.0
"""`attest log export`: equal bytes from every kind of source, nothing twice, and no log that has two histories."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from log_batches import ORIGIN, append, batch_for, commit_for
from served_logs import Answer, serving, serving_files

from quotary_attest.log.export import export as publish
from quotary_attest.log.store import Store
from quotary_cli.logsource import SourceFailed
from quotary_cli.main import run
from quotary_cli.sources.archive import ArchiveSource
from quotary_cli.sources.writer import ArchiveWriter, unfinished
from quotary_verifier.wire.history import Commit

IMA = [b"first record", b"first record, second", b"first record, second and third"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(tmp_path / "log")
    yield made
    made.close()


def published(store: Store, folder: Path, leaves: tuple[int, ...] = (1, 300, 1, 40)) -> Path:
    """Add commits of so many leaves to a log, and write it as static files."""
    for count in leaves:
        append(store, count, sync=True)
    publish(store, folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def exported(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert run(["log", "export", *map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_kind_of_source_gives_the_same_bytes(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static")
    found = exported(capsys, folder, tmp_path / "one.tar")
    assert found["schema"] == "quotary-log-export/v1"
    assert (found["origin"], found["size"], found["commits"]) == (ORIGIN, 342, 4)
    assert found["missing"] == [f"blob/{digit * 32}" for digit in ("09", "0a")], "named by log_batches only"
    with serving_files(files_of(folder), "/quotary/v1/") as served:
        exported(capsys, served.url, tmp_path / "two.tar")
    exported(capsys, tmp_path / "two.tar", tmp_path / "three.tar")
    assert len({(tmp_path / name).read_bytes() for name in ("one.tar", "two.tar", "three.tar")}) == 1
    with tarfile.open(tmp_path / "one.tar") as tar:
        names = tar.getnames()
    assert names[:2] == ["checkpoint", "history/000"]
    assert set(names) == set(files_of(folder))
    assert not unfinished(tmp_path / "one.tar").exists()


def test_an_export_ends_at_the_checkpoint_at_which_it_began(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static")
    exported(capsys, folder, tmp_path / "one.tar")
    old = (folder / "checkpoint").read_bytes()
    published(store, folder, (500, 7))
    (folder / "checkpoint").write_bytes(old)  # a log that grew while it was read
    exported(capsys, folder, tmp_path / "two.tar")
    assert (tmp_path / "two.tar").read_bytes() == (tmp_path / "one.tar").read_bytes()


def test_an_interrupted_export_goes_on_where_it_was(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static", (1, 2000))
    exported(capsys, folder, tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    published(store, folder, (30,))
    for part in (3, 5000, 50000, len(whole) - 1):
        unfinished(tmp_path / "a.tar").write_bytes(whole[:part])
        with serving_files(files_of(folder), "/quotary/v1/") as served:
            found = exported(capsys, served.url, tmp_path / "a.tar", "--force")
            fetched = [path for path in served.asked if "/tile/entries/" in path]
        if part > 1000:
            assert (tmp_path / "a.tar").read_bytes() == whole, "resumed at another checkpoint than it began"
            assert found["resumed"]
        if part == len(whole) - 1:
            assert not fetched, "what was there already was fetched again"


def test_an_interrupted_export_of_another_log_is_not_gone_on_with(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static")
    other = Store.open(tmp_path / "other")
    exported(capsys, published(other, tmp_path / "elsewhere"), tmp_path / "other.tar")
    other.close()
    shutil.copy(tmp_path / "other.tar", unfinished(tmp_path / "a.tar"))
    assert not exported(capsys, folder, tmp_path / "a.tar")["resumed"]
    exported(capsys, folder, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_what_was_written_stays_where_the_log_cannot_be_read_for_the_moment(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quotary_cli.sources.http._PAUSES", ())
    folder = published(store, tmp_path / "static")
    exported(capsys, folder, tmp_path / "whole.tar")
    begun = (tmp_path / "whole.tar").read_bytes()[:60000]
    unfinished(tmp_path / "a.tar").write_bytes(begun)
    files = files_of(folder)

    def answer(path: str) -> Answer:
        name = path.removeprefix("/log/")
        return (200, {}, files[name]) if name == "checkpoint" else (500, {}, b"")

    with serving(answer) as served:
        assert "answers 500" in exported(capsys, f"{served.url}/log", tmp_path / "a.tar", code=4)["error"]
    assert unfinished(tmp_path / "a.tar").read_bytes() == begun


def test_an_archive_to_which_somebody_else_wrote_is_not_put_in_place(tmp_path: Path) -> None:
    writer = ArchiveWriter.begin(tmp_path / "a.tar")
    writer.add("checkpoint", b"note")
    other = ArchiveWriter.begin(tmp_path / "a.tar")
    other.add("checkpoint", b"another")
    other.add("history/000", b"another")
    other.finish()
    unfinished(tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    with pytest.raises(SourceFailed):
        writer.finish()
    writer.close()


def test_an_archive_that_exists_is_replaced_only_where_that_is_asked_for(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static")
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"an earlier history")
    error = exported(capsys, folder, archive, code=2)
    assert ("it exists" in error["error"], "--force" in error["hint"]) == (True, True)
    assert archive.read_bytes() == b"an earlier history"
    assert not unfinished(archive).exists(), "refused before anything is read or written"
    exported(capsys, folder, archive, "--force")
    whole = archive.read_bytes()
    archive.unlink()
    archive.symlink_to(tmp_path / "elsewhere")
    exported(capsys, folder, archive, code=2)  # a link to nothing is somebody's, too
    exported(capsys, folder, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == whole
    exported(capsys, folder, tmp_path / "b.tar", "--since", tmp_path / "b.tar", "--force")
    assert (tmp_path / "b.tar").read_bytes() == whole, "an archive may take its own place"


def test_an_archive_that_appears_while_another_is_made_is_left_alone(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of(published(store, tmp_path / "static"))
    archive = tmp_path / "a.tar"

    def answer(path: str) -> Answer:
        if "/blob/" in path:
            archive.write_bytes(b"another's")
        data = files.get(path.removeprefix("/log/"))
        return (404, {}, b"") if data is None else (200, {}, data)

    with serving(answer) as served:
        exported(capsys, f"{served.url}/log", archive, code=2)
    assert archive.read_bytes() == b"another's"


def test_an_earlier_archive_saves_reading_and_changes_nothing(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static", (1, 3000))
    exported(capsys, folder, tmp_path / "old.tar")
    published(store, folder, (800,))
    exported(capsys, folder, tmp_path / "whole.tar")
    with serving_files(files_of(folder), "/quotary/v1/") as served:
        exported(capsys, served.url, tmp_path / "new.tar", "--since", tmp_path / "old.tar")
        bundles = [
            path.rsplit("/", 1)[1] for path in served.asked if path.startswith("/quotary/v1/tile/entries/0")
        ]
    assert (tmp_path / "new.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()
    assert set(bundles) <= {"000", "011", "012", "013", "014", "217"}


def test_a_log_that_does_not_continue_the_earlier_archive_is_not_exported(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(capsys, published(store, tmp_path / "static", (1, 500)), tmp_path / "old.tar")
    other = Store.open(tmp_path / "other")
    folder = published(other, tmp_path / "elsewhere", (1, 400))
    error = exported(capsys, folder, tmp_path / "a.tar", "--since", tmp_path / "old.tar", code=1)
    assert "has 401 leaves, and had 501" in error["error"]
    published(other, folder, (200,))
    error = exported(capsys, folder, tmp_path / "a.tar", "--since", tmp_path / "old.tar", code=1)
    assert "its first 501 leaves are others" in error["error"]
    assert "two histories" in error["hint"]
    assert not (tmp_path / "a.tar").exists()
    other.close()


def test_of_a_boot_log_that_grew_only_the_longest_form_is_copied(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for boot in (b"boot one: ", b"boot two: "):
        for log in IMA:
            batch = batch_for(store, 3)
            whole = boot + log
            commit = commit_for(batch)
            logs = {"ima": (sha256(whole).digest(), len(whole)), "tcg": (sha256(boot).digest(), len(boot))}
            store.stage(batch)
            store.commit(Commit(commit.first, commit.note, (), logs), batch)
            store.apply(batch)
    store.sync()
    publish(store, tmp_path / "static")
    for data in (b"boot one: " + IMA[-1], b"boot two: " + IMA[-1], b"boot one: ", b"boot two: "):
        (tmp_path / "static" / "blob").mkdir(exist_ok=True)
        (tmp_path / "static" / "blob" / sha256(data).hexdigest()).write_bytes(data)
    found = exported(capsys, tmp_path / "static", tmp_path / "a.tar")
    assert found["missing"] == []
    with ArchiveSource.open(tmp_path / "a.tar") as archive:
        contents = {archive.read(path, 1000) for path in archive.paths("blob")}
    assert contents == {b"boot one: " + IMA[-1], b"boot two: " + IMA[-1], b"boot one: ", b"boot two: "}


def test_a_log_without_a_part_of_its_tree_is_not_exported(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static", (1, 600))
    (folder / "tile" / "0" / "001").unlink()
    error = exported(capsys, folder, tmp_path / "a.tar", code=3)
    assert "there is no tile/0/001" in error["error"]
    assert not (tmp_path / "a.tar").exists()


def test_a_history_that_ends_early_is_copied_and_remarked(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static", (1, 20))
    (folder / "history" / "000").unlink()
    found = exported(capsys, folder, tmp_path / "a.tar")
    assert found["remarks"] == ["the history ends at 0 leaves, the checkpoint has 21"]


def test_what_stands_beside_the_log_goes_along_by_name(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published(store, tmp_path / "static")
    (tmp_path / "policy.toml").write_bytes(b"schema")
    (tmp_path / "debian.sha256sum").write_bytes(b"list")
    (tmp_path / "a name").write_bytes(b"")
    policies = ["-p", tmp_path / "policy.toml", "-p", tmp_path / "debian.sha256sum"]
    exported(capsys, folder, tmp_path / "a.tar", *policies)
    assert run(["log", "show", str(tmp_path / "a.tar"), "policy/policy.toml"]) == 0
    assert capsys.readouterr().out == "schema"
    assert run(["log", "show", str(tmp_path / "a.tar")]) == 0
    assert "debian.sha256sum, policy.toml" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "a.tar"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["status"]) == ("archive", "parsed, not verified")
    assert shown["content"]["policy"] == ["debian.sha256sum", "policy.toml"]
    error = exported(capsys, folder, tmp_path / "b.tar", "-p", tmp_path / "a name", code=2)
    assert "no file of this name stands in an archive" in error["error"]


def test_what_is_no_log_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "static").mkdir()
    assert "there is no checkpoint" in exported(capsys, tmp_path / "static", tmp_path / "a", code=3)["error"]
    (tmp_path / "static" / "checkpoint").write_bytes(b"nonsense")
    assert "checkpoint: " in exported(capsys, tmp_path / "static", tmp_path / "a", code=1)["error"]
