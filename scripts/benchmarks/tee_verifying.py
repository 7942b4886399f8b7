# SPDX-License-Identifier: Apache-2.0
"""What it costs to verify TEE evidence, beside the bare signature checks that no verifier can do without.

The evidence is minted (tests/support), with keys of the makers' own sizes: what verifying costs does not depend on who
signed. Certificates are read anew each time, the pinned root once, on both sides.
"""

from __future__ import annotations

from collections.abc import Callable

import amd_pki
import intel_sgx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from figures import Measured, by_turns
from quotary_verifier.evidence.tee.amd_certs import Generation, read_amd_certificate
from quotary_verifier.evidence.tee.intel_pki import read_chain
from quotary_verifier.evidence.tee.snp import verify_snp
from quotary_verifier.evidence.tee.snp_report import parse_snp_report
from quotary_verifier.evidence.tee.tdx import verify_tdx
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote

CALLS = 100
"""Verifications of a slice."""

_RSA_BITS = 4096


def snp(rounds: int) -> Measured:
    """An SNP report with its path, over two RSA-4096 verifications and one of P-384."""
    return _ratio(
        *snp_calls(), rounds, "verify_snp of a report with VCEK and ASK, over two RSA-PSS and one P-384"
    )


def tdx(rounds: int) -> Measured:
    """A TDX quote with its path, over four verifications with P-256."""
    return _ratio(*tdx_calls(), rounds, "verify_tdx of a quote without collateral, over four P-256")


def _ratio(whole: Callable[[], object], bare: Callable[[], object], rounds: int, what: str) -> Measured:
    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                call()

        return run

    spent = by_turns(repeated(whole), repeated(bare), rounds=rounds, slices=4)
    mine, theirs = (min(side) / (4 * CALLS) * 1e6 for side in zip(*spent, strict=True))
    return Measured(
        [one / other for one, other in spent],
        f"in one process by turns, {4 * CALLS} of each a round: {what} verifications and the loading of their keys;"
        f" best rounds {mine:.0f} and {theirs:.0f} µs",
    )


def _spki(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def snp_calls() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the verification of a report, and its bare signature checks."""
    forge = amd_pki.AmdForge(Generation.GENOA, bits=_RSA_BITS)
    evidence, endorsements, roots = forge.report(), forge.endorsements(), forge.roots()
    report = parse_snp_report(evidence)
    leaf, issuer = (read_amd_certificate(der) for der in (endorsements.leaf, endorsements.issuer))
    keys = [_spki(one.key) for one in (leaf, issuer)]
    ark = roots.arks[forge.generation].key
    assert isinstance(ark, rsa.RSAPublicKey)
    chosen = hashes.SHA384()
    scheme = padding.PSS(padding.MGF1(chosen), 48)

    def bare() -> None:
        signer, middle = (load_der_public_key(key) for key in keys)
        assert isinstance(signer, ec.EllipticCurvePublicKey)
        assert isinstance(middle, rsa.RSAPublicKey)
        ark.verify(issuer.signature, issuer.signed, scheme, chosen)
        middle.verify(leaf.signature, leaf.signed, scheme, chosen)
        signer.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(chosen))

    def whole() -> None:
        verify_snp(evidence, endorsements, amd_pki.NOW, report_data=amd_pki.BOUND, roots=roots)

    return whole, bare


def tdx_calls() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the verification of a quote without collateral, and its bare signature checks."""
    evidence, root = intel_sgx.TdxForge().quote(), intel_sgx.forged_root()
    quote = parse_tdx_quote(evidence)
    path: list[x509.Certificate] = read_chain(quote.chain)[:2]
    keys = [_spki(one.public_key()) for one in path]
    anchor = root.certificate.public_key()
    assert isinstance(anchor, ec.EllipticCurvePublicKey)
    chosen = ec.ECDSA(hashes.SHA256())
    links = [(one.signature, one.tbs_certificate_bytes) for one in path]

    def halves(raw: bytes) -> bytes:
        return encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))

    def bare() -> None:
        pck, middle = (load_der_public_key(key) for key in keys)
        assert isinstance(pck, ec.EllipticCurvePublicKey)
        assert isinstance(middle, ec.EllipticCurvePublicKey)
        anchor.verify(*links[1], chosen)
        middle.verify(*links[0], chosen)
        pck.verify(halves(quote.qe_signature), quote.qe_report.raw, chosen)
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + quote.attestation_key)
        point.verify(halves(quote.signature), quote.signed, chosen)

    def whole() -> None:
        verify_tdx(evidence, None, intel_sgx.NOW, report_data=intel_sgx.BOUND, root=root)

    return whole, bare
