# SPDX-License-Identifier: Apache-2.0
"""No file of the evidence corpus goes without a test: each folder has a test file, which judges each of its files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from corpus import corpus_root, entries, needs_corpus

TESTS = Path(__file__).resolve().parents[1]
JUDGED_BY = {
    "tlog/": "unit/verifier/test_corpus_tlog.py",
    "tpm/quote/": "unit/verifier/test_corpus_tpm.py",
    "tpm/cert/": "unit/verifier/test_corpus_tpm.py",
    "tpm/crypto/": "unit/attest/test_corpus_crypto.py",
    "tpm/eventlog/": "unit/verifier/logs/test_corpus_logs.py",
    "tpm/ccel/": "unit/verifier/logs/test_corpus_logs.py",
    "tpm/ima/": "unit/verifier/logs/test_corpus_logs.py",
    "tpm/cel/": "unit/verifier/logs/test_corpus_logs.py",
    "tee/azure-snp/": "unit/verifier/tee/test_corpus_azure.py",
    "tee/cca/": "unit/verifier/tee/test_corpus_cca.py",
    "tee/nitro/": "unit/verifier/tee/test_corpus_nitro.py",
    "tee/nvidia/": "unit/verifier/tee/test_nvidia.py",
    "tee/snp/": "unit/verifier/tee/test_corpus_snp.py",
    "tee/tdx/": "unit/verifier/tee/test_corpus_tdx.py",
}
"""Folder → the test file whose parametrised test takes every entry of the index below it."""

pytestmark = needs_corpus


def test_every_file_is_in_the_index_and_every_entry_is_a_file() -> None:
    top = corpus_root()
    assert top is not None
    present = {
        file.relative_to(top).as_posix()
        for folder in ("tpm", "tlog", "tee")
        for file in (top / folder).rglob("*")
        if file.is_file()
    }
    assert present == {one["file"] for one in entries("")}


def test_every_entry_belongs_to_exactly_one_test_file() -> None:
    for one in entries(""):
        assert sum(one["file"].startswith(folder) for folder in JUDGED_BY) == 1, one["file"]


def test_the_test_file_of_a_folder_takes_its_entries() -> None:
    for folder, name in JUDGED_BY.items():
        text = (TESTS / name).read_text()
        top, _, inner = folder.rstrip("/").partition("/")
        assert f'entries("{folder}' in text or f'"{folder}"' in text or f'"{inner}"' in text, (top, name)


OUTCOME = "test_a_file_of_the_corpus_has_its_stated_outcome"


def test_a_file_that_is_added_without_a_test_fails_the_suite(tmp_path: Path) -> None:
    """One more file in each folder of TEE evidence: in the index under a kind that has no check, then not in it."""
    top = corpus_root()
    assert top is not None
    for folder in ("tpm", "tlog"):
        (tmp_path / folder).symlink_to(top / folder)
    shutil.copytree(top / "tee", tmp_path / "tee")
    index = entries("")
    folders = [folder for folder in JUDGED_BY if folder.startswith("tee/")]
    for folder in folders:
        (tmp_path / folder / "new.bin").write_bytes(b"new")
        new = {"file": f"{folder}new.bin", "kind": "unheard-of", "expect": "ok", "expected": {}}
        index.append(new)
    (tmp_path / "tee" / "snp" / "left-out.bin").write_bytes(b"new")
    (tmp_path / "INDEX.json").write_text(json.dumps(index), "utf-8")
    tests = [Path(__file__), *(TESTS / JUDGED_BY[folder] for folder in folders)]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-m",
        "not slow",
    ]
    chosen = f"{OUTCOME} or test_every_file_is_in_the_index"
    run = subprocess.run(
        [*command, "-k", chosen, *map(str, tests)],
        cwd=TESTS.parent,
        env=os.environ | {"QUOTARY_CORPUS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    line = re.compile(r"^FAILED \S+/(test_\w+\.py)::(\w+)(?:\[(?:\w+/)?([^\]]*)\])?", re.MULTILINE)
    failed = line.findall(run.stdout)
    assert sorted(failed) == sorted(
        [
            ("test_corpus_index.py", "test_every_file_is_in_the_index_and_every_entry_is_a_file", ""),
            *((Path(JUDGED_BY[folder]).name, OUTCOME, "new.bin") for folder in folders),
        ]
    ), run.stdout
    (count,) = re.findall(r" (\d+) passed", run.stdout)
    assert int(count) == len(entries("tee/"))
