# SPDX-License-Identifier: Apache-2.0
"""Endorsement keys: certificates from NV, and credentials that only the right TPM and AK open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tpms import Tpm

from quotary_attest.enrol.credential import make_credential
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.ek import (
    EK_KINDS,
    activate_credential,
    ek_public,
    read_ek_certificates,
    read_ek_chain,
)
from quotary_attest.tpm.errors import TpmConflict, TpmForeignKey
from quotary_attest.tpm.keys import make_identity
from quotary_attest.tpm.model import TpmIdentity
from quotary_attest.tpm.tss import lib
from quotary_verifier.wire.tpm import parse_public

SECRET = bytes(range(32))


@pytest.fixture
def connection(tpm: Tpm) -> Iterator[Connection]:
    with Connection(tpm.tcti) as opened:
        yield opened


@pytest.fixture
def identity(connection: Connection) -> TpmIdentity:
    return make_identity(connection, chain_pcr=15, workload_pcr=13)


def write_nv(connection: Connection, index: int, data: bytes) -> None:
    """Define an index that anybody may read, and write it."""
    flags = lib.TPMA_NV.OWNERWRITE | lib.TPMA_NV.OWNERREAD | lib.TPMA_NV.AUTHREAD | lib.TPMA_NV.NO_DA
    area = lib.TPMS_NV_PUBLIC(
        nvIndex=index, nameAlg=lib.TPM2_ALG.SHA256, attributes=flags, authPolicy=b"", dataSize=len(data)
    )
    handle = connection.commands.nv_define_space(b"", lib.TPM2B_NV_PUBLIC(nvPublic=area))
    for start in range(0, len(data), 256):
        piece = data[start : start + 256]
        connection.commands.nv_write(handle, piece, start, auth_handle=lib.ESYS_TR.OWNER)


def test_the_certificates_of_the_manufacturer_are_read_best_kind_first(connection: Connection) -> None:
    found = read_ek_certificates(connection)
    assert [certificate.kind for certificate in found] == ["ecc-p384", "rsa-2048"]
    for certificate in found:
        assert x509.load_der_x509_certificate(certificate.der).public_bytes(Encoding.DER) == certificate.der


def test_a_certificates_key_is_the_key_that_the_default_template_makes(connection: Connection) -> None:
    for certificate in read_ek_certificates(connection):
        key = x509.load_der_x509_certificate(certificate.der).public_key()
        assert parse_public(ek_public(connection, certificate.kind)).public_key() == key


def test_the_certificates_lead_to_the_root_that_the_emulator_shows(tpm: Tpm, connection: Connection) -> None:
    root = x509.load_pem_x509_certificate(tpm.machine.ek_root.read_bytes())
    issuer = x509.load_pem_x509_certificate(tpm.machine.ek_issuer.read_bytes())
    issuer.verify_directly_issued_by(root)
    for certificate in read_ek_certificates(connection):
        x509.load_der_x509_certificate(certificate.der).verify_directly_issued_by(issuer)


@pytest.mark.parametrize("kind", sorted(EK_KINDS))
def test_a_credential_made_for_this_ak_is_opened(
    connection: Connection, identity: TpmIdentity, kind: str
) -> None:
    if kind == "ecc-p256":  # swtpm certifies none of this kind, and the default template needs no certificate
        assert kind not in [certificate.kind for certificate in read_ek_certificates(connection)]
    public = parse_public(ek_public(connection, kind))
    ak_name = parse_public(identity.ak_public).name
    made = make_credential(public, public.public_key(), ak_name=ak_name, secret=SECRET)
    opened = activate_credential(
        connection, identity, kind, id_object=made.id_object, encrypted_secret=made.encrypted_secret
    )
    assert opened == SECRET


def test_a_credential_made_for_another_ak_or_endorsement_key_is_not_opened(
    connection: Connection, identity: TpmIdentity
) -> None:
    other = make_identity(connection, chain_pcr=9, workload_pcr=8)
    public = parse_public(ek_public(connection, "ecc-p256"))
    ak_name = parse_public(other.ak_public).name
    made = make_credential(public, public.public_key(), ak_name=ak_name, secret=SECRET)
    sealed = {"id_object": made.id_object, "encrypted_secret": made.encrypted_secret}
    with pytest.raises(TpmForeignKey, match="does not belong to this tpm"):
        activate_credential(connection, identity, "ecc-p256", **sealed)
    assert activate_credential(connection, other, "ecc-p256", **sealed) == SECRET


def test_padding_behind_a_certificate_is_cut(connection: Connection) -> None:
    (der,) = (found.der for found in read_ek_certificates(connection) if found.kind == "ecc-p384")
    write_nv(connection, 0x01C0000A, der + b"\xff" * 200)
    (padded,) = (found.der for found in read_ek_certificates(connection) if found.kind == "ecc-p256")
    assert padded == der


@pytest.mark.parametrize(
    "junk", [b"\xff" * 64, b"\x30\x82\xff\xff" + bytes(60), b"\x30\x85" + bytes(60), b"\x30"]
)
def test_an_index_with_something_else_is_named(connection: Connection, junk: bytes) -> None:
    write_nv(connection, 0x01C0000A, junk)
    with pytest.raises(TpmConflict, match="nv index 0x01c0000a does not hold a certificate"):
        read_ek_certificates(connection)


def test_intermediates_that_the_tpm_carries_are_read_in_order(connection: Connection) -> None:
    assert read_ek_chain(connection) == []
    one, two = (found.der for found in read_ek_certificates(connection))
    write_nv(connection, 0x01C00100, one + two[:100])
    write_nv(connection, 0x01C00101, two[100:] + bytes(40))
    assert read_ek_chain(connection) == [one, two]


def test_a_kind_that_exists_only_with_a_certificate_is_named_where_there_is_none(
    connection: Connection,
) -> None:
    handle = connection.commands.tr_from_tpmpublic(0x01C00016)
    connection.commands.nv_undefine_space(handle, auth_handle=lib.ESYS_TR.PLATFORM)
    with pytest.raises(TpmConflict, match="no ecc-p384 endorsement key"):
        ek_public(connection, "ecc-p384")
