# SPDX-License-Identifier: Apache-2.0
"""Figures that need other processes: the command line's cold start, and sigstore-python beside the verifier."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from figures import Measured, NotMeasured, by_turns, progress
from quotary_verifier import verify
from sample import NOW, Sample

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = "import cryptography.x509, cbor2, nacl.signing, click"
PROCESSES = 6
"""Processes of either kind in a round."""

BUNDLE = "tlog/sigstore-rekor2-message-bundle.json"
MESSAGE = "tlog/sigstore-rekor2-message.txt"
SIGSTORE_CALLS, OUR_CALLS, SIGSTORE_SLICES = 12, 60, 4
"""Calls of either side in a slice, so that both take about as long, and slices in a round."""


def cold(sample: Sample, folder: Path, rounds: int) -> Measured:
    """`attest verify` as a process, over a Python process that only imports what it needs."""
    (folder / "output").write_bytes(sample.outputs[0])
    (folder / "output.attestation").write_bytes(sample.attestations[0])
    (folder / "policy.toml").write_bytes(sample.policy_bytes)
    # Modules are compiled once, as in any installation, whatever the caller's environment says about that.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    attest = [
        str(Path(sys.executable).with_name("attest")),
        *("verify", "output", "--policy", "policy.toml", "--at", str(NOW)),
    ]

    def run(command: list[str]) -> None:
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    imports = [sys.executable, "-c", BASE]
    spent = by_turns(lambda: run(attest), lambda: run(imports), rounds=rounds, slices=PROCESSES)
    mine, theirs = (1e3 * min(part) / PROCESSES for part in zip(*spent, strict=True))
    return Measured(
        [one / other for one, other in spent],
        f"wall time of {PROCESSES} processes of either kind a round, by turns: attest verify of one output, over"
        f" python -c '{BASE}'; best rounds {mine:.0f} and {theirs:.0f} ms",
    )


def versus_sigstore(sample: Sample, rounds: int) -> Measured:
    """sigstore-python's offline verification of a bundle over ours of an attestation."""
    corpus = Path(os.environ.get("QUOTARY_CORPUS", ROOT.parent / "shared" / "corpus")).resolve()
    if not (corpus / BUNDLE).is_file():
        raise NotMeasured("the corpus is not there (set QUOTARY_CORPUS), and with it the bundle to verify")
    policy, question = sample.policy, sample.question(0)

    def ours() -> None:
        for _ in range(OUR_CALLS):
            verify(sample.attestations[0], question, policy)

    with SigstoreWorker(corpus / BUNDLE, corpus / MESSAGE) as worker:
        spent = by_turns(lambda: worker.run(SIGSTORE_CALLS), ours, rounds=rounds, slices=SIGSTORE_SLICES)
        release = worker.release
    each = [
        (theirs / SIGSTORE_CALLS / SIGSTORE_SLICES, mine / OUR_CALLS / SIGSTORE_SLICES)
        for theirs, mine in spent
    ]
    theirs, mine = (1e6 * min(part) for part in zip(*each, strict=True))
    return Measured(
        [other / one for other, one in each],
        f"time of one call, by turns in slices of {SIGSTORE_CALLS} and {OUR_CALLS} calls, each from its bytes with a"
        f" policy that is ready: sigstore-python {release} (offline, its built-in trust root of the staging instance,"
        f" certificate identity checked) on the corpus's Rekor v2 bundle, over verify() with output, request and nonce;"
        f" best rounds {theirs:.0f} and {mine:.0f} µs",
    )


class SigstoreWorker:
    """A process in sigstore-python's environment that verifies a bundle as often as it is told to."""

    def __init__(self, bundle: Path, message: Path) -> None:
        program = Path(__file__).with_name("sigstore_worker.py")
        self._process = subprocess.Popen(
            [str(ensure_sigstore()), str(program), str(bundle), str(message)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.release = self._answer()

    def run(self, count: int) -> None:
        """Let it verify `count` times."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise NotMeasured("sigstore-python did not verify the bundle offline")
        return line

    def __enter__(self) -> SigstoreWorker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def ensure_sigstore() -> Path:
    """Install sigstore-python into an environment of its own, once, and return that environment's Python."""
    lock = ROOT / "requirements-bench.lock"
    home = ROOT / ".cache" / "bench-sigstore"
    home.mkdir(parents=True, exist_ok=True)
    python, stamp = home / "venv" / "bin" / "python", home / "stamp"
    digest = sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    with (home / "lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != digest:
            progress("installing sigstore-python beside the benchmarks")
            pip = [str(python), "-m", "pip", "install", "-q", "--require-hashes", "--only-binary", ":all:"]
            commands = (
                [sys.executable, "-m", "venv", "--clear", str(home / "venv")],
                [*pip, "-r", str(lock)],
            )
            with (home / "install.log").open("w") as log:
                for command in commands:
                    if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                        raise NotMeasured("sigstore-python could not be installed; see .cache/bench-sigstore")
            stamp.write_text(digest)
    return python
