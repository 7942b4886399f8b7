# SPDX-License-Identifier: Apache-2.0
"""No file of the evidence corpus goes without a test: each folder has a test file, which judges each of its files."""

from __future__ import annotations

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
