# SPDX-License-Identifier: Apache-2.0
"""Measured machines for tests: skipped, with the reason, where this host cannot make any."""

from __future__ import annotations

import pytest
from vm_image import Image, make_image, why_not


@pytest.fixture(scope="session")
def image() -> Image:
    """What every guest boots from."""
    if reason := why_not():
        pytest.skip(f"no measured machine: {reason}")
    return make_image()
