# SPDX-License-Identifier: Apache-2.0
"""Measuring files: digests that coreutils can recompute, and files that change meanwhile."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from quotary_attest.measure import (
    MeasureError,
    ModelFile,
    join_arguments,
    measure_code,
    measure_file,
    measure_files,
)
from quotary_attest.workload import measure_models


def test_one_file_is_measured_by_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    content = os.urandom(3 * (1 << 20) + 17)
    path.write_bytes(content)
    seen: list[int] = []
    measured = measure_files([path], seen.append)
    assert measured.digest == hashlib.sha256(content).digest()
    assert measured.size == sum(seen) == len(content)
    assert len(seen) > 1


def test_shards_are_measured_as_coreutils_can_recompute_whatever_their_order(tmp_path: Path) -> None:
    paths = []
    for name in ("model-00002.safetensors", "Model-00001.safetensors", "model-00001.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
        paths.append(tmp_path / name)
    command = "LC_ALL=C sha256sum *.safetensors | sha256sum"
    printed = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert measure_files(paths).digest.hex() == measure_files(paths[::-1]).digest.hex() == printed.split()[0]


def test_a_file_that_changes_while_it_is_measured_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 21))

    def grow(_count: int) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    with pytest.raises(MeasureError, match="changed while it was measured"):
        measure_file(path, grow)


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"cannot read .*absent"):
        measure_file(tmp_path / "absent")
    with pytest.raises(MeasureError, match="cannot read"):
        measure_file(tmp_path)
    with pytest.raises(MeasureError, match="no file"):
        measure_files([])
    with pytest.raises(MeasureError, match="have the name"):
        measure_files([tmp_path / "a" / "x", tmp_path / "b" / "x"])
    with pytest.raises(MeasureError, match="newline or backslash"):
        measure_files([tmp_path / "a\nb"])


def test_models_say_how_many_files_and_bytes_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345")
    (model,) = measure_models([ModelFile("m", (tmp_path / "a", tmp_path / "b"))])
    assert model.details == {"files": 2, "bytes": 10}


def test_code_is_measured_by_what_is_installed_and_where(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "a.py").write_text("a")
    (package / "inner" / "b.py").write_text("b")
    before = measure_code([package])
    (package / "data.txt").write_text("not code")
    assert measure_code([package]) == before
    (package / "inner" / "b.py").rename(package / "b.py")
    assert measure_code([package]) != before


def test_arguments_are_joined_so_that_no_two_command_lines_agree() -> None:
    assert join_arguments(["a b", "c"]) != join_arguments(["a", "b c"])
    assert join_arguments(["a", ""]) != join_arguments(["a"])
