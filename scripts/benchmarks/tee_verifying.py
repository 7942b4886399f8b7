# SPDX-License-Identifier: Apache-2.0
"""What it costs to verify TEE evidence, beside the bare signature checks that no verifier can do without.

The evidence is minted (tests/support), with keys of the makers' own sizes: what verifying costs does not depend on who
signed. Certificates are read anew each time, the pinned root once, on both sides.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

import amd_pki
import cbor2
import cca_tokens
import device_forge
import intel_sgx
from azure_forge import AzureForge
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from nvidia_forge import NvidiaForge

from figures import Measured, by_turns
from quotary_verifier.evidence.tee.amd_certs import Generation, read_amd_certificate
from quotary_verifier.evidence.tee.azure import verify_azure
from quotary_verifier.evidence.tee.azure_hcl import parse_hcl_report
from quotary_verifier.evidence.tee.cca import verify_cca
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.intel_pki import read_chain
from quotary_verifier.evidence.tee.nitro import verify_nitro
from quotary_verifier.evidence.tee.nitro_document import parse_nitro_document
from quotary_verifier.evidence.tee.nvidia import verify_nvidia
from quotary_verifier.evidence.tee.nvidia_spdm import parse_spdm_report
from quotary_verifier.evidence.tee.snp import SnpEndorsements, verify_snp
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


def azure(rounds: int) -> Measured:
    """An HCL report around an SNP report, over the SNP report's signatures and the digest of its text."""
    what = "verify_azure of an HCL report over an SNP report, over two RSA-PSS, one P-384 and one SHA-256"
    return _ratio(*azure_calls(), rounds, what)


def nitro(rounds: int) -> Measured:
    """A Nitro document with its path, over four verifications with P-384."""
    return _ratio(
        *nitro_calls(), rounds, "verify_nitro of a document with two CAs below its root, over four P-384"
    )


def nvidia(rounds: int) -> Measured:
    """A device's report with its path, over five verifications with P-384."""
    return _ratio(
        *nvidia_calls(), rounds, "verify_nvidia of a report with three CAs below its root, over five P-384"
    )


def cca(rounds: int) -> Measured:
    """A CCA token under one platform key, over two verifications with P-384."""
    return _ratio(*cca_calls(), rounds, "verify_cca of a token under one platform key, over two P-384")


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


def _halves(raw: bytes) -> bytes:
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def snp_calls() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the verification of a report, and its bare signature checks."""
    forge = amd_pki.AmdForge(Generation.GENOA, bits=_RSA_BITS)
    evidence, endorsements, roots = forge.report(), forge.endorsements(), forge.roots()
    bare = _snp_signatures(evidence, endorsements, roots.arks[forge.generation].key)

    def whole() -> None:
        verify_snp(evidence, endorsements, amd_pki.NOW, report_data=amd_pki.BOUND, roots=roots)

    return whole, bare


def _snp_signatures(evidence: bytes, endorsements: SnpEndorsements, ark: object) -> Callable[[], None]:
    """Return the bare checks of a report's signature and of its path."""
    report = parse_snp_report(evidence)
    leaf, issuer = (read_amd_certificate(der) for der in (endorsements.leaf, endorsements.issuer))
    keys = [_spki(one.key) for one in (leaf, issuer)]
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

    return bare


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

    bound = quote.qe_report.report_data[:32]

    def bare() -> None:
        pck, middle = (load_der_public_key(key) for key in keys)
        assert isinstance(pck, ec.EllipticCurvePublicKey)
        assert isinstance(middle, ec.EllipticCurvePublicKey)
        anchor.verify(*links[1], chosen)
        middle.verify(*links[0], chosen)
        pck.verify(_halves(quote.qe_signature), quote.qe_report.raw, chosen)
        assert hmac.compare_digest(hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest(), bound)
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + quote.attestation_key)
        point.verify(_halves(quote.signature), quote.signed, chosen)

    def whole() -> None:
        verify_tdx(evidence, None, intel_sgx.NOW, report_data=intel_sgx.BOUND, root=root)

    return whole, bare


def azure_calls() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the verification of an HCL report, and the bare checks of its signatures and of what they bind."""
    forge = AzureForge(amd_pki.AmdForge(Generation.GENOA, bits=_RSA_BITS))
    evidence, endorsements, roots = forge.report(), forge.amd.endorsements(), forge.amd.roots()
    hcl = parse_hcl_report(evidence)
    signatures = _snp_signatures(hcl.hardware, endorsements, roots.arks[forge.amd.generation].key)

    def bare() -> None:
        signatures()
        assert hmac.compare_digest(hashlib.sha256(hcl.text).digest(), hcl.report_data[:32])

    def whole() -> None:
        verify_azure(evidence, endorsements, amd_pki.NOW, amd=roots)

    return whole, bare


def nitro_calls() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the verification of a document, and its bare signature checks."""
    forge = device_forge.NitroForge()
    evidence, root = forge.document(), PinnedRoot(forge.root.der)
    document = parse_nitro_document(evidence)
    path = [one.certificate for one in forge.path]
    named = {"user_data": device_forge.DIGEST, "nonce": device_forge.GENESIS}

    def whole() -> None:
        verify_nitro(evidence, device_forge.NOW, root=root, **named)

    return whole, _es384(path, root, document.signature, document.signed)


def nvidia_calls() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the verification of a device's report, and its bare signature checks."""
    forge = NvidiaForge()
    issued = forge.path()
    path, ders = [one.certificate for one in issued], [one.der for one in issued]
    evidence, root = forge.report(), PinnedRoot(forge.root.der)
    report = parse_spdm_report(evidence)

    def whole() -> None:
        verify_nvidia(evidence, ders, device_forge.NOW, nonce=device_forge.DIGEST, root=root)

    return whole, _es384(path, root, report.signature, report.signed)


def _es384(
    path: Sequence[x509.Certificate], root: PinnedRoot, signature: bytes, signed: bytes
) -> Callable[[], None]:
    """Return the bare checks of a path with keys on P-384, leaf first, and of what its leaf signed."""
    keys = [_spki(one.public_key()) for one in path]
    links = [(one.signature, one.tbs_certificate_bytes) for one in path]
    anchor = root.certificate.public_key()
    assert isinstance(anchor, ec.EllipticCurvePublicKey)
    chosen = ec.ECDSA(hashes.SHA384())

    def bare() -> None:
        loaded = [load_der_public_key(key) for key in keys]
        for (link, content), issuer in zip(links, [*loaded[1:], anchor], strict=True):
            assert isinstance(issuer, ec.EllipticCurvePublicKey)
            issuer.verify(link, content, chosen)
        leaf = loaded[0]
        assert isinstance(leaf, ec.EllipticCurvePublicKey)
        leaf.verify(_halves(signature), signed, chosen)

    return bare


def cca_calls() -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the verification of a token, and the bare checks of its two signatures and of the link between them."""
    evidence, keys = cca_tokens.token(), [cca_tokens.platform_key()]
    tokens = cbor2.loads(evidence).value
    parts = [cbor2.loads(tokens[label]).value for label in (44234, 44241)]
    signed = [cbor2.dumps(["Signature1", part[0], b"", part[2]]) for part in parts]
    platform, point = cca_tokens.CPAK.public_key(), cca_tokens.point()
    named = cbor2.loads(parts[0][2])[10]
    chosen = ec.ECDSA(hashes.SHA384())

    def bare() -> None:
        platform.verify(_halves(parts[0][3]), signed[0], chosen)
        realm = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        realm.verify(_halves(parts[1][3]), signed[1], chosen)
        assert hmac.compare_digest(hashlib.sha256(point).digest(), named)

    def whole() -> None:
        verify_cca(evidence, keys, challenge=cca_tokens.BOUND)

    return whole, bare
