# SPDX-License-Identifier: Apache-2.0
"""Reading files of the log from a disk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from quotary_attest.log.durable import read_file


def test_a_small_file_takes_little_memory_whatever_it_might_have_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a few bytes")
    tracemalloc.start()
    try:
        assert read_file(tmp_path / "file", max_bytes=1 << 30) == b"a few bytes"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_no_more_is_read_than_the_caller_takes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a few bytes")
    assert read_file(tmp_path / "file", max_bytes=5) == b"a few"
    assert read_file(tmp_path / "absent", max_bytes=5) is None
