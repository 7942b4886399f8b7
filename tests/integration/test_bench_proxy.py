# SPDX-License-Identifier: Apache-2.0
"""The proxy's figures can be measured, and come of the same streams on every side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import proxying
from figures import NotMeasured


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first run installs the toolchain
def test_all_sides_take_the_same_streams(tmp_path: Path) -> None:
    try:
        found = proxying.measure(tmp_path, 2, chunks=20)
    except NotMeasured as error:
        pytest.skip(str(error))
    assert set(found) == {"proxy_first_token_ms", "proxy_chunk_ratio"}
    assert len(found["proxy_chunk_ratio"].values) == 2
    assert all(ratio > 0.5 for ratio in found["proxy_chunk_ratio"].values)


def test_a_process_that_ran_has_used_time() -> None:
    before = proxying.cpu_seconds(os.getpid())
    sum(range(300_000))
    assert 0 < proxying.cpu_seconds(os.getpid()) - before < 10
