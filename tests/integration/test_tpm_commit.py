# SPDX-License-Identifier: Apache-2.0
"""The root's commits against a real software TPM."""

from __future__ import annotations

import hashlib

from tpms import CC_PCR_EXTEND, CC_QUOTE, Tpm

from quotary_attest.tpm.root import open_root


async def test_a_commit_costs_exactly_one_extend_and_one_quote(tpm: Tpm) -> None:
    root = await open_root(tpm.identity(), tpm.tcti)
    await root.commit(bytes(32))
    with tpm.counted() as codes:
        for step in range(5):
            await root.commit(hashlib.sha256(bytes([step])).digest())
    await root.close()
    assert codes == [CC_QUOTE] * 5 + [CC_PCR_EXTEND] * 5
