# SPDX-License-Identifier: Apache-2.0
"""Runs one fuzz target under atheris: `fuzz_child.py TARGET FUZZER-ARGUMENTS...`. It ends where the fuzzer ends."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from pathlib import Path

import atheris

_HERE = Path(__file__).resolve().parent
MOST_SECONDS = 5.0
"""Processor time of one input, the slowdown by instrumentation included; nothing here is that long."""


def main(arguments: list[str]) -> None:
    """Load the target with the verifier instrumented, and hand over to the fuzzer."""
    sys.path[:0] = [str(_HERE), str(_HERE.parent / "support")]
    warnings.simplefilter("error")
    name = arguments[1]
    with atheris.instrument_imports(include=["quotary_verifier"], enable_loader_override=False):
        from fuzz_table import target

        chosen = target(name, lambda data, most: atheris.Mutate(data, max(len(data), most)))

    def one(data: bytes) -> None:
        began = time.process_time()
        chosen.run(data)
        spent = time.process_time() - began
        assert spent < MOST_SECONDS, f"an input took {spent:.1f} s"

    options = {} if chosen.mutate is None else {"custom_mutator": chosen.mutate}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    atheris.Setup([arguments[0], *arguments[2:]], one, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
