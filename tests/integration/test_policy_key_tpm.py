# SPDX-License-Identifier: Apache-2.0
"""Signing policies with a key that a real software TPM made and keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tpms import Tpm

from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.emulator import Emulator
from quotary_attest.tpm.errors import TpmAuthError, TpmForeignKey, TpmUnsupported
from quotary_attest.tpm.policy_key import make_policy_key, read_policy_key_file, sign_with
from quotary_attest.tpm.reading import loaded_handles
from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tpm_keys import check_ak
from quotary_verifier.policy.signed import SignedPolicy, open_signed_policy, read_policy_key, sign_policy
from quotary_verifier.wire.tpm_public import parse_public

NOW = 1_795_435_200
POLICY = SignedPolicy(b"text", "fleet", 1, NOW - 1, NOW + 1)


@pytest.fixture
def connection(tpm: Tpm) -> Iterator[Connection]:
    with Connection(tpm.tcti) as opened:
        yield opened


@pytest.mark.parametrize("password", [None, b"correct horse"], ids=["open", "password"])
def test_a_policy_that_the_tpm_signed_verifies_and_nothing_stays_loaded(
    connection: Connection, password: bytes | None
) -> None:
    made = make_policy_key(connection, password)
    key = read_policy_key(made.public)
    read = read_policy_key_file(made.private)
    assert read == made
    for _ in range(3):
        signed = sign_policy(POLICY, key, lambda message: sign_with(connection, read, message, password))
        assert open_signed_policy(signed, [key], NOW) == (POLICY, key)
    assert loaded_handles(connection) == []


def test_a_key_with_a_password_is_not_used_without_it(connection: Connection) -> None:
    made = make_policy_key(connection, b"right")
    for password in (None, b"wrong"):
        with pytest.raises(TpmAuthError):
            sign_with(connection, made, b"message", password)


def test_a_key_of_another_tpm_is_not_loaded(connection: Connection, tmp_path: Path) -> None:
    made = make_policy_key(connection)
    with (
        Emulator(tmp_path / "other") as other,
        Connection(other.tcti) as elsewhere,
        pytest.raises(TpmForeignKey, match="another tpm"),
    ):
        sign_with(elsewhere, made, b"message")


def test_a_signing_key_is_no_ak(connection: Connection) -> None:
    from tpm2_pytss.tsskey import TSSPrivKey

    made = TSSPrivKey.from_pem(make_policy_key(connection).private)
    public = parse_public(made.public.publicArea.marshal())
    with pytest.raises(EvidenceError):
        check_ak(public)


def test_a_file_that_is_no_key_is_refused(connection: Connection) -> None:
    made = make_policy_key(connection)
    lines = made.private.splitlines(keepends=True)
    for pem in (b"", b"text", made.public, lines[0] + lines[-1], b"".join([lines[0], *lines[2:]])):
        with pytest.raises(TpmUnsupported):
            read_policy_key_file(pem)
    with pytest.raises(TpmUnsupported):
        sign_with(connection, replace(made, private=b""), b"message")
