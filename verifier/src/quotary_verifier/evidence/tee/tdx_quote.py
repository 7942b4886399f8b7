# SPDX-License-Identifier: Apache-2.0
"""Intel TDX quotes of versions 4 and 5 (Intel, "TDX DCAP Quoting Library API", appendix A), little-endian.

What is signed reaches from the header to the end of the body. The signature data behind it have one form; what comes
after the declared length is no part of the evidence (buffers are handed out padded) and is neither read nor counted.
"""

from __future__ import annotations

import hashlib
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.little import Reader
from quotary_verifier.wire.frozen import frozen

MAX_QUOTE: Final = 64 * 1024
"""Bytes of a quote with everything behind it; the largest real ones have 8 KiB."""

INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
"""The vendor id of Intel's quoting enclave."""

PCK_CHAIN: Final = 5
"""Certification data: the PCK certificate and its chain, in PEM."""

_ECDSA_P256: Final = 2
_TDX: Final = 0x81
_QE_REPORT: Final = 6
_BODIES: Final = {2: 584, 3: 648}
_BODY_1_0: Final = 2
_BODY_SGX: Final = 1
_BODY_1_5: Final = 3
_SGX_VERSION: Final = 3
_TDREPORT_BYTES: Final = 1024
_TDREPORT_TYPE: Final = 0x81
_CBOR: Final = frozenset({0x84, 0xD2, 0xD8, 0xD9})
"""First bytes of a COSE_Sign1, bare or tagged, and of a CWT."""

_QE_REPORT_BYTES: Final = 384
_CHAINLESS: Final = {
    1: "the encrypted id of a platform", 2: "the id of a platform, encrypted with RSA-2048",
    3: "the id of a platform, encrypted with RSA-3072", 4: "a PCK certificate without its chain",
    7: "a platform's manifest",
}  # fmt: skip


@frozen
class TdxBody:
    """The TD report inside a quote. `tee_tcb_svn_2` and `mr_service_td` are None in a body of TD 1.0."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes | None
    mr_service_td: bytes | None


@frozen
class QeReport:
    """The quoting enclave's own report; `raw` is its 384 bytes."""

    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes
    raw: bytes


@frozen
class TdxQuote:
    """A parsed quote; nothing in it is verified.

    `signed`: header to end of the body. `signature`, `attestation_key`: 64 bytes each, big-endian halves. `chain`: the
    PCK certificate and its chain (PEM). `raw`: the quote, without what stood behind it; `trailing`: how much that was.
    """

    version: int
    user_data: bytes
    body: TdxBody
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_signature: bytes
    qe_auth_data: bytes
    chain: bytes
    raw: bytes
    trailing: int

    @property
    def sha256(self) -> bytes:
        """The digest of the quote without what stood behind it."""
        return hashlib.sha256(self.raw).digest()


def parse_tdx_quote(data: bytes) -> TdxQuote:
    """Read a quote at the beginning of `data`.

    Raises:
        MalformedError: a length, type or version does not fit the others.
        EvidenceError: it is a report or quote of another kind.
        UnsupportedError: it may be a TDX quote, of a form that is not known.
    """
    if len(data) > MAX_QUOTE:
        raise MalformedError(f"a tdx quote of {len(data)} bytes is larger than {MAX_QUOTE}")
    _refuse_other_kinds(data)
    reader = Reader(data, "the tdx quote")
    version, key_type, tee_type = reader.number(2), reader.number(2), reader.number(4)
    if tee_type != _TDX:
        raise EvidenceError(f"the quote is of tee type 0x{tee_type:x}, not of tdx")
    if version not in (4, 5):
        raise UnsupportedError(f"version {version} of the tdx quote is not known")
    if key_type != _ECDSA_P256:
        raise UnsupportedError(f"attestation key type {key_type} of the tdx quote is not known")
    reader.take(4)  # svns that mean something in SGX quotes alone
    if reader.take(16) != INTEL_QE:
        raise UnsupportedError("the tdx quote is by a quoting enclave that is not intel's")
    user_data = reader.take(20)
    body = _body(reader, version)
    signed_end = reader.at
    signature = Reader(reader.take(reader.number(4)), "the signature data of the tdx quote")
    end = reader.at
    value, key = signature.take(64), signature.take(64)
    kind, certified = signature.number(2), signature.take(signature.number(4))
    signature.end()
    if kind != _QE_REPORT:
        raise UnsupportedError(
            f"certification data of type {kind} are not known where a qe report is expected"
        )
    qe = Reader(certified, "the certification data of the tdx quote")
    report, qe_signature = _qe_report(qe.take(_QE_REPORT_BYTES)), qe.take(64)
    auth_data = qe.take(qe.number(2))
    chain = _chain(qe.number(2), qe.take(qe.number(4)))
    qe.end()
    return TdxQuote(
        version, user_data, body, data[:signed_end], value, key, report, qe_signature, auth_data, chain,
        data[:end], len(data) - end,
    )  # fmt: skip


def _refuse_other_kinds(data: bytes) -> None:
    """Name what is easily taken for a quote of TDX: by the kernel's interface, or by its own look."""
    if len(data) == _TDREPORT_BYTES and data[0] == _TDREPORT_TYPE:
        raise EvidenceError("a tdreport is no quote: it is authenticated for its own machine alone")
    if data[:1] and data[0] in _CBOR:
        raise UnsupportedError("tdx quotes in the form of a cbor web token are not known")
    if int.from_bytes(data[:2], "little") == _SGX_VERSION:
        raise EvidenceError("an sgx quote is not a tdx quote")


def _body(reader: Reader, version: int) -> TdxBody:
    kind = _BODY_1_0
    if version == 5:
        kind, size = reader.number(2), reader.number(4)
        if kind == _BODY_SGX:
            raise EvidenceError("the quote has the body of an sgx enclave, not of a td")
        if kind not in _BODIES:
            raise UnsupportedError(f"body type {kind} of the tdx quote is not known")
        if size != _BODIES[kind]:
            raise MalformedError(f"a tdx quote's body of type {kind} has {_BODIES[kind]} bytes, not {size}")
    take = reader.take
    newer = kind == _BODY_1_5
    return TdxBody(
        tee_tcb_svn=take(16),
        mr_seam=take(48),
        mr_signer_seam=take(48),
        seam_attributes=take(8),
        td_attributes=take(8),
        xfam=take(8),
        mr_td=take(48),
        mr_config_id=take(48),
        mr_owner=take(48),
        mr_owner_config=take(48),
        rtmrs=(take(48), take(48), take(48), take(48)),
        report_data=take(64),
        tee_tcb_svn_2=take(16) if newer else None,
        mr_service_td=take(48) if newer else None,
    )


def _qe_report(raw: bytes) -> QeReport:
    return QeReport(
        misc_select=raw[0x10:0x14],
        attributes=raw[0x30:0x40],
        mr_enclave=raw[0x40:0x60],
        mr_signer=raw[0x80:0xA0],
        isv_prod_id=int.from_bytes(raw[0x100:0x102], "little"),
        isv_svn=int.from_bytes(raw[0x102:0x104], "little"),
        report_data=raw[0x140:0x180],
        raw=raw,
    )


def _chain(kind: int, data: bytes) -> bytes:
    if kind != PCK_CHAIN:
        held = f" ({_CHAINLESS[kind]})" if kind in _CHAINLESS else ""
        raise UnsupportedError(f"certification data of type {kind}{held} hold no chain of certificates")
    return data
