# SPDX-License-Identifier: Apache-2.0
"""Makes tests/vectors/vm anew: boots measured machines and keeps what they logged and quoted.

Run by `scripts/vm --capture`. Each folder is one boot: see the README there.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from vm_boot_disk import COMMAND_LINE, Boot, Keys
from vm_guest import Guest, Machine
from vm_image import REPOSITORY, make_image, why_not

VECTORS = REPOSITORY / "tests" / "vectors" / "vm"
NONCE = bytes(range(16))


def keep(guest: Guest, name: str) -> None:
    """Write one boot's folder."""
    answer = guest.ask()
    logs = guest.logs_of(answer.attestation)
    for log in logs:
        assert guest.log(log).startswith(logs[log]), f"the kernel's log {log} is not what the agent serves"
    line = (
        "" if name == "secure-boot" else "initrd=\\guest\\initrd "
    ) + COMMAND_LINE  # as systemd-boot gives it
    about = {"at": int(time.time()), "origin": guest.origin, "nonce": NONCE.hex(), "command_line": line}
    folder = VECTORS / name
    folder.mkdir(parents=True)
    for log, data in logs.items():
        (folder / f"{log}.bin").write_bytes(data)
    (folder / "output").write_bytes(answer.body)
    (folder / "output.attestation").write_bytes(answer.attestation)
    (folder / "fresh.quote").write_bytes(guest.fresh_quote(NONCE))
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    print(
        f"kept {name}: {', '.join(f'{log} {len(data)} bytes' for log, data in logs.items())}", file=sys.stderr
    )


def main() -> None:
    """Boot each machine, one of them twice."""
    if reason := why_not():
        sys.exit(f"error: {reason}")
    image = make_image()
    for stale in VECTORS.glob("*/"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix="quotary-vm-") as folder:
        plain = Machine(Path(folder) / "plain", image, Boot.of(image))
        for name in ("first-boot", "second-boot"):
            with plain.boot() as guest:
                keep(guest, name)
        boot = Boot.of(image).changed(unified=True, keys=Keys.make(Path(folder) / "keys"))
        with Machine(Path(folder) / "secure", image, boot, banks="sha1,sha256").boot() as guest:
            keep(guest, "secure-boot")


if __name__ == "__main__":
    main()
