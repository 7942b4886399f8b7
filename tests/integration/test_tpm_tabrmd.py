# SPDX-License-Identifier: Apache-2.0
"""The root behind tpm2-abrmd, the resource manager in user space."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tpms import Tpm

from quotary_attest.tpm.tss import lib

NEEDED = ("tpm2-abrmd", "dbus-run-session", "gdbus")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
MISSING = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
MISSING += [] if lib.TCTILdr.is_available("tabrmd") else ["libtss2-tcti-tabrmd0"]
NAME = "org.quotary.Test"

SERVE = """
set -eu
tpm2-abrmd --allow-root --session --dbus-name="$NAME" --tcti="$TCTI" & daemon=$!
trap 'kill $daemon; wait $daemon || true' EXIT
gdbus wait --session --timeout 20 "$NAME"
"$PYTHON" "$SCRIPT"
"""

CLIENT = """
import asyncio
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.keys import make_identity
from quotary_attest.tpm.reading import loaded_handles
from quotary_attest.tpm.root import open_root
from quotary_verifier.wire.tpm import parse_attest

TCTI = "tabrmd:bus_name={name},bus_type=session"

async def main():
    with Connection(TCTI) as connection:
        identity = make_identity(connection, chain_pcr=15, workload_pcr=13)
    root = await open_root(identity, TCTI)
    with Connection(TCTI) as other:
        assert loaded_handles(other) == [], "a resource manager hides one client's keys from another"
    quote = await root.commit(bytes(32))
    assert parse_attest(quote.attest).extra_data == bytes(32)
    await root.close()
    print("quoted")

asyncio.run(main())
"""


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_a_commit_works_through_the_resource_manager(tpm: Tpm, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(CLIENT.format(name=NAME))
    environment = os.environ | {
        "PATH": PATH,
        "NAME": NAME,
        "TCTI": tpm.tcti,
        "PYTHON": sys.executable,
        "SCRIPT": str(script),
    }
    done = subprocess.run(
        ["dbus-run-session", "--", "sh", "-c", SERVE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith("quoted\n"), done.stdout + done.stderr
