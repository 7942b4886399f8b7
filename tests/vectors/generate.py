# SPDX-License-Identifier: Apache-2.0
"""Writes the one-defect vectors (tests/vectors/README.md): `python tests/vectors/generate.py`.

They hold signatures by keys that nobody kept, so every run writes other bytes. Run it only where a format or a case
changed, and commit the result.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

from defects import CASES, Case  # noqa: E402 - the path must be set first


def main() -> None:
    """Write one file for each case, and take away those whose case is gone."""
    folder = HERE / "attestation"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for name, make in CASES.items():
        text = json.dumps(as_json(name, make()), indent=1) + "\n"
        (folder / f"{name}.json").write_text(text)
    print(f"{len(CASES)} vectors in {folder}")


def as_json(name: str, case: Case) -> dict[str, object]:
    """Return a vector as it stands in its file."""
    question = case.question
    logs = {digest.hex(): _base64(log) for digest, log in question.logs.items()}
    return {
        "name": name,
        "expect": str(case.outcome),
        "step": None if case.step is None else str(case.step),
        "at": question.at,
        "exact": question.exact,
        "attestation": _base64(case.attestation),
        "output": _base64(question.output),
        "request": None if question.request is None else _base64(question.request),
        "nonce": None if question.nonce is None else question.nonce.hex(),
        "policy": case.policy,
    } | ({"logs": logs} if logs else {})


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
