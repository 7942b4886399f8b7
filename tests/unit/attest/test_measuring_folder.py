# SPDX-License-Identifier: Apache-2.0
"""Model folders: what is measured of them, and that coreutils compute the same digest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from signed_models import write_files

from quotary_attest.measure import MeasureError, ModelFile, measure_files, model_size
from quotary_attest.measuring.files import hash_file, hash_files
from quotary_attest.measuring.folder import part_of
from quotary_attest.workload import measure_models

MODEL = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b"index",
    "tokenizer.json": b"tokens",
    "tokenizer_config.json": b"more tokens",
    "chat_template.jinja": b"{{ template }}",
    "sub/vocab.txt": b"words",
    "sub-a": b"orders otherwise than sub/",
    "README.md": b"read me",
}
LEFT_OUT = {
    ".git/config": b"git",
    ".gitattributes": b"lfs",
    ".cache/huggingface/download/x.metadata": b"time",
    "model.sig": b"signature",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    write_files(made, MODEL | LEFT_OUT)
    return made


def coreutils(folder: Path, *names: str) -> str:
    """What coreutils make of files in a folder: the digest of their manifest."""
    shell = "LC_ALL=C sha256sum " + " ".join(names) + " | sha256sum"
    done = subprocess.run(["sh", "-c", shell], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def test_a_folder_is_measured_as_coreutils_can_recompute_without_what_tools_left_there(folder: Path) -> None:
    measured = measure_files([folder])
    names = sorted(MODEL, key=str.encode)
    assert [file.name for file in measured.files] == names
    assert measured.digest.hex() == coreutils(folder, *names)
    assert measured.folder == folder
    assert model_size([folder]) == measured.size == sum(map(len, MODEL.values()))


def test_the_command_of_the_specification_gives_the_digest_of_a_folder(tmp_path: Path) -> None:
    write_files(tmp_path / "folder", MODEL)
    (tmp_path / "folder" / "linked.safetensors").symlink_to(tmp_path / "folder" / "config.json")
    page = Path(__file__).parents[3] / "docs" / "spec" / "workload-log.md"
    (command,) = (line.strip() for line in page.read_text().splitlines() if "find -L" in line)
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == measure_files([tmp_path / "folder"]).digest.hex()


def test_a_folder_of_one_file_is_measured_with_the_files_name(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {"model.gguf": b"weights"})
    write_files(tmp_path / "b", {"other.gguf": b"weights"})
    assert measure_files([tmp_path / "a"]).digest != measure_files([tmp_path / "b"]).digest
    assert measure_files([tmp_path / "a" / "model.gguf"]).digest == hashlib.sha256(b"weights").digest()


@pytest.mark.parametrize("name", sorted(MODEL))
def test_every_file_of_a_folder_counts_and_so_does_its_name(folder: Path, name: str) -> None:
    before = measure_files([folder]).digest
    (folder / name).rename(folder / (name + "x"))
    renamed = measure_files([folder]).digest
    (folder / (name + "x")).rename(folder / name)
    (folder / name).write_bytes(MODEL[name] + b"x")
    assert len({before, renamed, measure_files([folder]).digest}) == 3


def test_an_auditor_sees_which_part_of_a_model_has_changed(folder: Path) -> None:
    (before,) = measure_models([ModelFile("m", (folder,))])
    (folder / "chat_template.jinja").write_bytes(b"another")
    (after,) = measure_models([ModelFile("m", (folder,))])
    assert before.weights != after.weights
    changed = {name for name in before.details if before.details[name] != after.details[name]}
    assert changed == {"chat_template", "bytes", "openssf"}
    parts = {"chat_template", "configuration", "tokenizer", "weights", "other"}
    assert parts < before.details.keys()
    weights = [name for name in MODEL if part_of(name) == "weights"]
    digest = before.details["weights"]
    assert isinstance(digest, bytes)
    assert digest.hex() == coreutils(folder, *sorted(weights, key=str.encode))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model-00001-of-00030.safetensors", "weights"),
        ("model.safetensors.index.json", "weights"),
        ("pytorch_model.bin", "weights"),
        ("SmolLM2.Q4_1.gguf", "weights"),
        ("tokenizer.model", "tokenizer"),
        ("vocab.json", "tokenizer"),
        ("special_tokens_map.json", "tokenizer"),
        ("chat_template.json", "chat_template"),
        ("additional_chat_templates/tools.jinja", "chat_template"),
        ("adapter_model.safetensors", "adapter"),
        ("adapter_config.json", "adapter"),
        ("generation_config.json", "configuration"),
        ("modeling_custom.py", "other"),
    ],
)
def test_files_are_told_apart_by_name(name: str, part: str) -> None:
    assert part_of(name) == part


def test_links_to_files_are_followed_as_in_a_download_cache(tmp_path: Path) -> None:
    write_files(tmp_path / "blobs", {"abc": b"weights"})
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    write_files(tmp_path / "plain", {"model.safetensors": b"weights"})
    assert measure_files([tmp_path / "snapshot"]).digest == measure_files([tmp_path / "plain"]).digest


def test_what_could_be_read_unmeasured_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "model", {"a": b"a"})
    write_files(tmp_path / "elsewhere", {"b": b"b"})
    link = tmp_path / "model" / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MeasureError, match="link to a folder") as refused:
        measure_files([tmp_path / "model"])
    assert refused.value.hint
    link.unlink()
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(MeasureError, match="no such file"):
        measure_files([tmp_path / "model"])
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(MeasureError, match="neither a file nor a folder"):
        measure_files([tmp_path / "model"])
    with pytest.raises(MeasureError, match="not a regular file"):
        hash_file(link)
    link.unlink()
    (tmp_path / "model" / "a\nb").write_bytes(b"")
    with pytest.raises(MeasureError, match="newline"):
        measure_files([tmp_path / "model"])


def test_a_file_that_is_added_while_the_others_are_hashed_is_noticed(tmp_path: Path) -> None:
    write_files(tmp_path / "model", {"a": b"a", "sub/b": b"b"})

    def add(_count: int) -> None:
        (tmp_path / "model" / "sub" / "added").write_bytes(b"x")

    with pytest.raises(MeasureError, match="changed while it was measured"):
        measure_files([tmp_path / "model"], add)
    measured = measure_files([tmp_path / "model"])
    assert [path for path, _ in measured.folders] == [tmp_path / "model", tmp_path / "model" / "sub"]


def test_an_empty_folder_and_a_folder_among_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_files(tmp_path, {"file": b"x"})
    with pytest.raises(MeasureError, match="no file to measure"):
        measure_files([tmp_path / "empty"])
    with pytest.raises(MeasureError, match="one of them is a folder"):
        measure_files([tmp_path / "file", tmp_path / "empty"])


def test_files_are_hashed_side_by_side_and_progress_is_told_one_call_at_a_time(tmp_path: Path) -> None:
    names = [f"shard-{number}" for number in range(6)]
    write_files(tmp_path, {name: os.urandom(3 << 20) for name in names})
    inside, met = threading.Lock(), threading.Event()
    threads: set[int] = set()
    counts: list[int] = []

    def progress(count: int) -> None:
        assert inside.acquire(blocking=False)
        counts.append(count)
        threads.add(threading.get_ident())
        inside.release()
        if len(threads) == 2:
            met.set()

    hashed = hash_files([(name, tmp_path / name) for name in names], progress, workers=2)
    assert [file.name for file in hashed] == names
    assert sum(counts) == 6 * (3 << 20)
    assert met.is_set()


def test_a_file_that_fails_ends_the_measuring_of_all(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"a"})
    with pytest.raises(MeasureError, match="absent"):
        hash_files([("a", tmp_path / "a"), ("absent", tmp_path / "absent")])


def test_a_change_right_after_measuring_shows_in_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for _ in range(20):
        path.write_bytes(b"before")
        measured = hash_file(path)
        # older kernels stamp two changes within a tick alike, so no file is measured before its tick is over
        assert time.time_ns() - path.stat().st_ctime_ns >= 20_000_000
        path.write_bytes(b"behind")
        assert measured.identity is not None
        assert measured.identity.changed != path.stat().st_ctime_ns


def test_the_first_failure_gives_up_what_is_left_to_hash(tmp_path: Path) -> None:
    large, told = 1 << 34, []
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", large)  # no bytes on disk
    with pytest.raises(MeasureError, match="not a regular file"):
        hash_files([("large", tmp_path / "large"), ("folder", tmp_path)], told.append, workers=2)
    assert sum(told) < large


def test_an_interrupt_while_threads_are_being_started_gives_up_what_they_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's pool does not know a thread yet that it is starting: neither would it end that thread's work."""
    large, told, started = 1 << 34, [], threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        started(thread)
        raise KeyboardInterrupt

    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", large)  # no bytes on disk
    before = set(threading.enumerate())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hash_files([("large", tmp_path / "large")], told.append)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert sum(told) < large
