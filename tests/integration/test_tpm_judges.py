# SPDX-License-Identifier: Apache-2.0
"""tpm2-tools judge our quotes and structures: they know nothing of us."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from tpms import Tpm

from quotary_attest.roots import Quote
from quotary_attest.tpm.model import TpmIdentity
from quotary_attest.tpm.root import open_root
from quotary_verifier.wire.tpm import parse_attest

pytestmark = [
    pytest.mark.judge,
    pytest.mark.skipif(shutil.which("tpm2_checkquote") is None, reason="not installed: tpm2-tools"),
]

DIGEST = hashlib.sha256(b"a commit").digest()


def tools_pcr_file(pcrs: Mapping[int, bytes]) -> bytes:
    """PCRs 0-15 of the SHA-256 bank as tpm2_quote writes them: C structures of a little-endian host."""
    selection = struct.pack("<I HB4sx", 1, 0x000B, 3, b"\xff\xff\0\0").ljust(4 + 16 * 8, b"\0")
    lists = [[pcrs[pcr] for pcr in range(first, first + 8)] for first in (0, 8)]
    digests = (
        struct.pack("<I", 8) + b"".join(struct.pack("<H64s", 32, value) for value in each) for each in lists
    )
    return selection + struct.pack("<I", len(lists)) + b"".join(digests)


def files(folder: Path, identity: TpmIdentity, quote: Quote) -> dict[str, Path]:
    """Write what tpm2_checkquote reads."""
    contents = {
        "public": len(identity.ak_public).to_bytes(2, "big") + identity.ak_public,
        "message": quote.attest,
        "signature": quote.signature,
        "pcr": tools_pcr_file(quote.pcrs),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def check(paths: dict[str, Path], qualification: bytes) -> subprocess.CompletedProcess[str]:
    options = [f"--{name}={path}" for name, path in paths.items()]
    return subprocess.run(
        ["tpm2_checkquote", *options, "--hash-algorithm=sha256", f"--qualification={qualification.hex()}"],
        capture_output=True,
        text=True,
        check=False,
    )


def show(kind: str, path: Path) -> str:
    done = subprocess.run(["tpm2_print", f"--type={kind}", path], capture_output=True, text=True, check=True)
    return done.stdout


async def test_tpm2_checkquote_accepts_a_commits_quote_with_all_pcr_values(tpm: Tpm, tmp_path: Path) -> None:
    identity = tpm.identity()
    root = await open_root(identity, tpm.tcti)
    tpm.extend(4, hashlib.sha256(b"boot loader").digest())
    await root.extend_workload(DIGEST)
    quote = await root.commit(DIGEST)
    await root.close()
    paths = files(tmp_path, identity, quote)
    good = check(paths, DIGEST)
    assert good.returncode == 0, good.stderr
    other = check(paths, hashlib.sha256(b"another commit").digest())
    assert other.returncode != 0
    paths["pcr"].write_bytes(tools_pcr_file(quote.pcrs | {0: bytes(31) + b"\1"}))
    assert check(paths, DIGEST).returncode != 0


async def test_tpm2_print_reads_the_quote_as_we_do(tpm: Tpm, tmp_path: Path) -> None:
    identity = tpm.identity()
    root = await open_root(identity, tpm.tcti)
    quote = await root.commit(DIGEST)
    await root.close()
    paths = files(tmp_path, identity, quote)
    shown = show("TPMS_ATTEST", paths["message"])
    parsed = parse_attest(quote.attest)
    assert parsed.quote is not None
    for expected in (
        "type: 8018",
        f"extraData: {DIGEST.hex()}",
        f"qualifiedSigner: {parsed.qualified_signer.hex()}",
        f"clock: {quote.clock.clock}",
        f"resetCount: {quote.clock.reset_count}",
        f"restartCount: {quote.clock.restart_count}",
        f"pcrDigest: {parsed.quote.pcr_digest.hex()}",
    ):
        assert expected in shown


async def test_tpm2_print_finds_the_attributes_of_the_specification_in_the_ak(
    tpm: Tpm, tmp_path: Path
) -> None:
    identity = tpm.identity()
    path = tmp_path / "ak"
    path.write_bytes(identity.ak_public)
    shown = show("TPMT_PUBLIC", path)
    assert "value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign" in shown
    assert "raw: 0x50472" in shown
    for expected in ("value: NIST p256", "value: ecdsa", "value: sha256"):
        assert expected in shown
