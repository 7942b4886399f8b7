# SPDX-License-Identifier: Apache-2.0
"""What Intel publishes about a platform's TCB (Intel, "PCS API" version 4): signatures, dates, identities, CRLs.

Signatures are over the bytes as they were published, never over JSON that was written anew. Collateral of another time
than that of the evidence decides nothing: it is refused as not usable, not as false.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    StaleCollateralError,
    UnsupportedError,
)
from quotary_verifier.evidence.tee.intel_pki import (
    TCB_SIGNING_NAME,
    IntelPath,
    IntelRoot,
    Pck,
    path_revocation,
    read_chain,
    verify_intel_path,
)
from quotary_verifier.evidence.tee.tdx_quote import QeReport, TdxBody, TdxQuote
from quotary_verifier.pki.revocation import Revocation, made_by, read_crl
from quotary_verifier.wire.frozen import frozen

MAX_JSON: Final = 1 << 20
"""Bytes of one document of Intel's, and of collateral as one JSON object."""

_TCB_INFO_VERSION: Final = 3
_QE_IDENTITY_VERSION: Final = 2
_SIGNATURE_BYTES: Final = 64
_COMPONENTS: Final = 16
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_PARTS: Final = {
    "pck_crl_issuer_chain": "text",
    "root_ca_crl": "hex",
    "pck_crl": "hex",
    "tcb_info_issuer_chain": "text",
    "tcb_info": "text",
    "tcb_info_signature": "hex",
    "qe_identity_issuer_chain": "text",
    "qe_identity": "text",
    "qe_identity_signature": "hex",
}


@frozen
class TdxCollateral:
    """Intel's documents for one platform, as published: JSON and chains (PEM) verbatim, signatures, CRLs (DER)."""

    pck_crl_issuer_chain: bytes
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: bytes
    tcb_info: bytes
    tcb_info_signature: bytes
    qe_identity_issuer_chain: bytes
    qe_identity: bytes
    qe_identity_signature: bytes

    @classmethod
    def from_json(cls, data: bytes) -> TdxCollateral:
        """Read the one JSON object in which such collateral is kept, as text and hex. MalformedError."""
        content = read_json(data, "the tdx collateral")
        parts: dict[str, bytes] = {}
        for name, form in _PARTS.items():
            value = content.get(name) if isinstance(content, dict) else None
            if not isinstance(value, str):
                raise MalformedError(f"the tdx collateral lacks {name}")
            try:
                parts[name] = value.encode() if form == "text" else bytes.fromhex(value)
            except ValueError:
                raise MalformedError(f"{name} of the tdx collateral is not {form}") from None
        return cls(**parts)


@frozen
class TcbLevel:
    """One level of a TCB info: it holds for a platform that has at least each of these SVNs."""

    components: tuple[int, ...]
    tdx_components: tuple[int, ...]
    pce_svn: int
    status: str
    date: str


@frozen
class PartStatus:
    """The state of the quoting enclave or the TDX module."""

    status: str
    advisories: tuple[str, ...]


@frozen
class CollateralFacts:
    """What verified collateral says of a quote's platform, before its levels are compared.

    `not_before`, `not_after`: when all of it is valid, the latter no longer included. `evaluation`: the lower of the
    two evaluation data numbers. `paths`: of who signed it. `good`: CRLs say that no certificate was revoked by then.
    """

    levels: tuple[TcbLevel, ...]
    qe: PartStatus
    module: PartStatus
    evaluation: int
    not_before: datetime
    not_after: datetime
    paths: tuple[IntelPath, ...]
    good: bool

    def require_valid(self, at: datetime) -> None:
        """Check that the collateral decides something at a time.

        Raises:
            OutOfTimeError: a certificate of who signed it is of another time.
            StaleCollateralError: it is itself.
            UnsupportedError: its CRLs do not say of every certificate that it was not revoked.
        """
        for path in self.paths:
            path.require_valid("tcb signing", at)
        if not self.not_before <= at < self.not_after:
            raise StaleCollateralError(
                f"the tdx collateral is valid from {self.not_before:%Y-%m-%dT%H:%M:%SZ} to"
                f" {self.not_after:%Y-%m-%dT%H:%M:%SZ}, not at {at:%Y-%m-%dT%H:%M:%SZ}",
                self.not_before,
                self.not_after,
            )
        if not self.good:
            raise UnsupportedError("no crl of that time says that nobody who signed was revoked")


def verify_collateral(
    collateral: TdxCollateral, quote: TdxQuote, pck: Pck, path: IntelPath, root: IntelRoot, at: datetime
) -> CollateralFacts:
    """Verify collateral for a quote whose PCK path is verified; `at` is the time by which nobody may have been revoked.

    Whether the collateral decides anything then, `CollateralFacts.require_valid` tells.

    Raises:
        MalformedError: a document is not of its form.
        EvidenceError: a signature does not hold, something was revoked, or platform, quoting enclave or TDX module
            are not those that the collateral is for.
        UnsupportedError: the collateral is of an unknown version.
    """
    root_crl, pck_crl = read_crl(collateral.root_ca_crl), read_crl(collateral.pck_crl)
    if tuple(read_chain(collateral.pck_crl_issuer_chain)) not in (path.chain[1:], path.chain[1:-1]):
        raise EvidenceError("the chain beside the crl of pcks is not that of the pck's issuer")
    for crl, issuer in ((pck_crl, path.chain[1]), (root_crl, path.chain[2])):
        if not made_by(crl, issuer):
            raise EvidenceError("a crl of the tdx collateral was not made by whom it has to be of")
    documents, paths, states = [], [], []
    for text, signature, chain, what in (
        (
            collateral.tcb_info,
            collateral.tcb_info_signature,
            collateral.tcb_info_issuer_chain,
            "the tcb info",
        ),
        (
            collateral.qe_identity,
            collateral.qe_identity_signature,
            collateral.qe_identity_issuer_chain,
            "the qe identity",
        ),
    ):
        signer = verify_intel_path(chain, root, leaf=TCB_SIGNING_NAME, length=2)
        paths.append(signer)
        states.append(path_revocation(signer, (root_crl,), at))
        documents.append(_Document(_signed_json(text, signature, signer, what), what))
    states.append(path_revocation(path, (pck_crl, root_crl), at))
    info, identity = documents
    ends = [document.time("nextUpdate") for document in documents]
    ends += [crl.next_update_utc for crl in (root_crl, pck_crl) if crl.next_update_utc]
    _check_platform(info, pck)
    return CollateralFacts(
        levels=tuple(_level(level) for level in info.documents("tcbLevels")),
        qe=_qe_status(identity, quote.qe_report),
        module=_module_status(info, quote.body),
        evaluation=min(document.number("tcbEvaluationDataNumber") for document in documents),
        not_before=max(document.time("issueDate") for document in documents),
        not_after=min(ends),
        paths=tuple(paths),
        good=set(states) == {Revocation.GOOD},
    )


def _signed_json(text: bytes, signature: bytes, signer: IntelPath, what: str) -> dict[str, Any]:
    if len(text) > MAX_JSON or len(signature) != _SIGNATURE_BYTES:
        raise MalformedError(f"{what} or its signature has a length that cannot be")
    signer.verify(signature, text, f"the signature of {what}")
    content = read_json(text, what)
    if not isinstance(content, dict):
        raise MalformedError(f"{what} is no json object")
    return content


def read_json(data: bytes, what: str) -> object:
    """Read JSON in which no key stands twice and no constant is no number. MalformedError."""
    if len(data) > MAX_JSON:
        raise MalformedError(f"{what} of {len(data)} bytes is too large")
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise MalformedError(f"{what} cannot be read as json") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


class _Document:
    """A JSON object of Intel's, with its fields by type; `what` names it in messages."""

    def __init__(self, content: object, what: str) -> None:
        if not isinstance(content, dict):
            raise MalformedError(f"{what} has something that is no object where one is expected")
        self._content = content
        self._what = what

    def _field(self, name: str, kind: type, default: object = None) -> Any:
        value = self._content.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise MalformedError(f"{self._what} lacks {name}")
        return value

    def text(self, name: str) -> str:
        """A text."""
        return str(self._field(name, str))

    def number(self, name: str) -> int:
        """A number that is not negative."""
        found = int(self._field(name, int))
        if found < 0:
            raise MalformedError(f"{name} of {self._what} is negative")
        return found

    def octets(self, name: str) -> bytes:
        """Bytes in hex."""
        try:
            return bytes.fromhex(self.text(name))
        except ValueError:
            raise MalformedError(f"{name} of {self._what} is not hex") from None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty where it is left out."""
        found = self._field(name, list, [])
        if not all(isinstance(one, str) for one in found):
            raise MalformedError(f"{name} of {self._what} is no list of texts")
        return tuple(found)

    def documents(self, name: str) -> list[_Document]:
        """A list of objects, empty where it is left out."""
        return [_Document(one, self._what) for one in self._field(name, list, [])]

    def document(self, name: str) -> _Document:
        """An object."""
        return _Document(self._field(name, dict), self._what)

    def time(self, name: str) -> datetime:
        """A time in UTC."""
        found = self.text(name)
        try:
            if not _TIME.fullmatch(found):
                raise ValueError
            return datetime.strptime(found, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise MalformedError(f"{name} of {self._what} is no time") from None

    def masked(self, value: bytes, name: str, mask: str) -> bool:
        """Whether `value` under the mask is what the field says."""
        wanted, bits = self.octets(name), self.octets(mask)
        if not len(value) == len(wanted) == len(bits):
            raise MalformedError(f"{name} of {self._what} does not have {len(value)} bytes")
        return bytes(one & bit for one, bit in zip(value, bits, strict=True)) == wanted

    def first_level(self, holds: Callable[[_Document], bool]) -> PartStatus | None:
        """The state that the first level says whose TCB holds, or None."""
        for level in self.documents("tcbLevels"):
            if holds(level.document("tcb")):
                return PartStatus(level.text("tcbStatus"), level.texts("advisoryIDs"))
        return None


def _check_platform(info: _Document, pck: Pck) -> None:
    if info.text("id") != "TDX":
        raise EvidenceError(f"the tcb info is for {info.text('id')!r}, not for tdx")
    if info.number("version") != _TCB_INFO_VERSION or info.number("tcbType") != 0:
        raise UnsupportedError("the tcb info is of a version or type that is not known")
    if info.octets("fmspc") != pck.fmspc or info.octets("pceId") != pck.pce_id:
        raise EvidenceError(
            f"the tcb info is for platforms {info.text('fmspc')}, not {pck.fmspc.hex().upper()}"
        )


def _level(level: _Document) -> TcbLevel:
    tcb = level.document("tcb")
    components = tuple(one.number("svn") for one in tcb.documents("sgxtcbcomponents"))
    tdx = tuple(one.number("svn") for one in tcb.documents("tdxtcbcomponents"))
    if len(components) != _COMPONENTS or len(tdx) != _COMPONENTS:
        raise MalformedError("a level of the tcb info does not have 16 components of each kind")
    return TcbLevel(components, tdx, tcb.number("pcesvn"), level.text("tcbStatus"), level.text("tcbDate"))


def _qe_status(identity: _Document, report: QeReport) -> PartStatus:
    """Whose enclave made the quote: without this, any enclave of the platform could have (CVE-2026-22696)."""
    if identity.text("id") != "TD_QE" or identity.number("version") != _QE_IDENTITY_VERSION:
        raise UnsupportedError(
            "the qe identity is of another kind or version than that of a td's quoting enclave"
        )
    fits = (
        identity.octets("mrsigner") == report.mr_signer,
        identity.number("isvprodid") == report.isv_prod_id,
        identity.masked(report.misc_select[::-1], "miscselect", "miscselectMask"),
        identity.masked(report.attributes, "attributes", "attributesMask"),
    )
    if not all(fits):
        raise EvidenceError("the quote was not made by the quoting enclave that the qe identity describes")
    status = identity.first_level(lambda tcb: tcb.number("isvsvn") <= report.isv_svn)
    if status is None:
        raise EvidenceError(
            f"the qe identity has no level for version {report.isv_svn} of the quoting enclave"
        )
    return status


def _module_status(info: _Document, body: TdxBody) -> PartStatus:
    """The TDX module: signer and attributes as published for its major version, and the level of its minor one."""
    minor, major = body.tee_tcb_svn[:2]
    if major == 0:
        if not _is_module(info.document("tdxModule"), body):
            raise EvidenceError("the tdx module is not the one that the tcb info describes")
        return PartStatus("UpToDate", ())
    named = f"TDX_{major:02X}"
    for identity in info.documents("tdxModuleIdentities"):
        if identity.text("id").upper() != named:
            continue
        if not _is_module(identity, body):
            raise EvidenceError(f"the tdx module is not the {named} that the tcb info describes")
        status = identity.first_level(lambda tcb: tcb.number("isvsvn") <= minor)
        if status is None:
            raise EvidenceError(f"the tcb info has no level for version {minor} of the module {named}")
        return status
    raise EvidenceError(f"the tcb info does not know a tdx module {named}")


def _is_module(identity: _Document, body: TdxBody) -> bool:
    fits = identity.masked(body.seam_attributes, "attributes", "attributesMask")
    return fits and identity.octets("mrsigner") == body.mr_signer_seam
