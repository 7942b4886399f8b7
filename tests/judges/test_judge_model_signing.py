# SPDX-License-Identifier: Apache-2.0
"""`model-signing`, OpenSSF's own implementation, signs models that we verify, and judges our manifest of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from judge_tools import venv_with
from signed_models import public_pem, write_files

from quotary_attest.measure import ModelFile, SignatureError
from quotary_attest.measuring.openssf import load_signers
from quotary_attest.workload import measure_model

# The first run makes the judge's environment.
pytestmark = [pytest.mark.judge, pytest.mark.timeout(900)]

FILES = {
    "model.safetensors": b"weights" * 1000,
    "config.json": b"{}",
    "sub/x": b"x",
    "sub-a": b"y",
    "sub.b": b"z",
}
SIGN = """
import sys
from model_signing import signing
model, signature, key = sys.argv[1:]
signing.Config().use_elliptic_key_signer(private_key=key).sign(model, signature)
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter that has the library, and what it needs and does not name."""
    folder = venv_with("model-signing==1.1.1")
    executable = folder / "bin" / "python"
    subprocess.run(
        [executable, "-m", "pip", "install", "--quiet", "pyopenssl==26.4.0"], check=True, timeout=600
    )
    return executable


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_what_it_signs_verifies_here_until_a_byte_changes(
    python: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    key = ec.generate_private_key(curve)
    private = tmp_path / "key"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "public").write_bytes(public_pem(key))
    folder = tmp_path / "model"
    write_files(folder, FILES)
    (tmp_path / "one.gguf").write_bytes(b"GGUF" * 100)
    signers = load_signers([tmp_path / "public"], [])
    for model, signature in (
        (folder, folder / "model.sig"),
        (tmp_path / "one.gguf", tmp_path / "one.gguf.sig"),
    ):
        command = [python, "-W", "ignore", "-c", SIGN, model, signature, private]
        subprocess.run(command, check=True, timeout=120)
        served, _ = measure_model(ModelFile("m", (model,)), signers=signers)
        assert served.details["signature"] == "verified"
    (folder / "sub" / "x").write_bytes(b"X")
    with pytest.raises(SignatureError, match="differ from what was signed: sub/x"):
        measure_model(ModelFile("m", (folder,)), signers=signers)


def test_the_digest_of_the_whole_is_the_one_that_it_signs(python: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "model", FILES)
    script = (
        "import sys\nfrom model_signing import hashing\nfrom model_signing._signing.signing import Payload\n"
        "print(Payload(hashing.Config().hash(sys.argv[1])).statement.pb.subject[0].digest['sha256'])"
    )
    command = [python, "-W", "ignore", "-c", script, tmp_path / "model"]
    said = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout.strip()
    served, _ = measure_model(ModelFile("m", (tmp_path / "model",)))
    digest = served.details["openssf"]
    assert isinstance(digest, bytes)
    assert digest.hex() == said
