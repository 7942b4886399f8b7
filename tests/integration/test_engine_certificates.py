# SPDX-License-Identifier: Apache-2.0
"""AK certificates: installed while the agent runs, shown with new outputs and with old ones, of the right key."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from agents import audit_store, make_state, running, settled, start
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.state import StateError, install_certificates, read_certificates
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Genesis
from quotary_verifier.wire.tpm import parse_public

CA = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def certificate(key: ec.EllipticCurvePublicKey, serial: int) -> bytes:
    """A DER certificate of a key, signed by this test's CA."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key)
    builder = builder.serial_number(serial).not_valid_before(NOW).not_valid_after(NOW.replace(year=2036))
    return builder.sign(CA, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def ak_of(agent: Agent) -> ec.EllipticCurvePublicKey:
    tpm = Genesis.decode(agent.genesis_record).tpm
    assert tpm is not None
    key = parse_public(tpm.ak).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


async def test_an_installed_path_is_taken_up_and_shown_with_old_outputs_too(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        old = await agent.attest(b"old")
        assert Attestation.decode(old.encoded).supports[0].certificates == ()
        path = (certificate(ak_of(agent), 1), certificate(CA.public_key(), 2))
        install_certificates(folder, path)
        await agent.reload_certificates()
        new = Attestation.decode((await agent.attest(b"new")).encoded)
        assert new.supports[0].certificates == path
        await settled(agent.store)
        assert Attestation.decode(await agent.fetch(old.output_id)).supports[0].certificates == path
        audit_store(agent.store)
        (support,) = agent.store.last_commit.commit.supports  # type: ignore[union-attr]
        assert tuple(map(agent.store.blob, support.certificates)) == path
    assert read_certificates(folder) == path
    async with running(tpm, folder) as agent:
        assert agent.status()["certificates"] == 2


async def test_a_certificate_of_another_key_is_refused_and_the_agent_goes_on_without_it(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    async with running(tpm, folder) as agent:
        install_certificates(folder, [certificate(CA.public_key(), 1)])
        with pytest.raises(StateError, match="not of this origin's attestation key"):
            await agent.reload_certificates()
        assert Attestation.decode((await agent.attest(b"x")).encoded).supports[0].certificates == ()
    with pytest.raises(StateError, match="not of this origin's attestation key"):
        await start(tpm, folder)


def test_what_is_no_certificate_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not a sequence of der"):
        install_certificates(tmp_path, [b"no certificate"])
    with pytest.raises(StateError, match="followed by other bytes"):
        install_certificates(tmp_path, [certificate(CA.public_key(), 1) + b"x"])
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates" / "ak.der").write_bytes(certificate(CA.public_key(), 1)[:-1])
    with pytest.raises(StateError, match="cut off"):
        read_certificates(tmp_path)
