# SPDX-License-Identifier: Apache-2.0
"""The simulated discrete TPM is as slow as it says, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tpms import Tpm

import dtpm
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.emulator import Emulator
from quotary_attest.tpm.keys import make_identity
from quotary_attest.tpm.reading import read_clock
from quotary_attest.tpm.root import open_root

D = hashlib.sha256(b"commit").digest()


def slow_process(listen: Path, swtpm: Path) -> subprocess.Popen[str]:
    """The proxy as a process, listening."""
    process = subprocess.Popen(
        [sys.executable, dtpm.__file__, "--listen", listen, "--swtpm", swtpm],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


async def test_the_process_delays_quotes_and_extends_and_reports_what_it_passed_on(
    tpm_template: Path, tmp_path: Path
) -> None:
    shutil.copytree(tpm_template, tmp_path / "state")
    with Emulator(tmp_path / "state") as emulator:
        listen = emulator.socket.with_name("slow")
        process = slow_process(listen, emulator.socket)
        with Connection(f"swtpm:path={listen}") as connection:
            identity = make_identity(connection, chain_pcr=15, workload_pcr=13)
        root = await open_root(identity, f"swtpm:path={listen}")
        started = time.perf_counter()
        await root.extend_workload(D)
        extend = time.perf_counter() - started
        started = time.perf_counter()
        await root.quote(D)
        quote = time.perf_counter() - started
        await root.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    counts = json.loads(out)
    assert (counts["0x182"], counts["0x158"]) == (1, 1)
    assert extend >= 0.012
    assert quote >= 0.100
    assert set(dtpm.DELAYS) == {dtpm.QUOTE, dtpm.PCR_EXTEND}


def test_the_proxy_imports_the_standard_library_only() -> None:
    script = (
        "import sys; before = set(sys.modules); import dtpm;"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(Path(dtpm.__file__).parent)!r}); {script}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['dtpm']\n"


async def test_several_clients_share_one_tpm_through_the_switchboard(tpm: Tpm) -> None:
    root = await open_root(tpm.identity(), tpm.tcti)
    with Connection(tpm.tcti) as one, Connection(tpm.tcti) as two:
        assert read_clock(one).boot == read_clock(two).boot
        await root.commit(D)
    await root.close()


def test_the_delays_can_be_set_for_other_chips() -> None:
    with pytest.raises(SystemExit):
        dtpm.main(["--quote-ms", "fast"])
