# SPDX-License-Identifier: Apache-2.0
"""Verifies one Sigstore bundle, offline, as often as each line of stdin says; runs in sigstore-python's environment.

Prints the release of sigstore-python when it is ready, and the seconds that each line's verifications took.
"""

from __future__ import annotations

import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path

from sigstore.models import Bundle
from sigstore.verify import Verifier
from sigstore.verify.policy import Identity

IDENTITY = Identity(identity="jku@goto.fi", issuer="https://github.com/login/oauth")
"""Who signed the corpus's bundle, as its certificate says."""


def main() -> None:
    """Verify until stdin ends."""
    logging.disable(logging.CRITICAL)
    bundle, message = (Path(path).read_bytes() for path in sys.argv[1:3])
    verifier = Verifier.staging(offline=True)
    verifier.verify_artifact(message, Bundle.from_json(bundle), IDENTITY)
    print(version("sigstore"), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        for _ in range(int(line)):
            verifier.verify_artifact(message, Bundle.from_json(bundle), IDENTITY)
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
