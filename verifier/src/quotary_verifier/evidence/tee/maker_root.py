# SPDX-License-Identifier: Apache-2.0
"""One root certificate of a maker of hardware, ready to verify paths that end in it and in no other."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.pki.anchors import read_ca_certificate


class MakerRoot:
    """The one root that is trusted. `builder` verifies paths with at most `depth` CAs between leaf and root."""

    __slots__ = ("builder", "certificate", "der", "sha256", "subject")

    def __init__(self, der: bytes, *, ca: ExtensionPolicy, leaf: ExtensionPolicy, depth: int) -> None:
        """Read a root in DER. MalformedError if it is that of no root."""
        root = read_ca_certificate(der)
        if not root.root or root.faults:
            raise MalformedError(f"{root.subject} is no root: it does not sign itself")
        self.der = der
        self.certificate = root.certificate
        self.sha256 = root.sha256
        self.subject = root.subject
        builder = PolicyBuilder().store(Store([root.certificate])).max_chain_depth(depth)
        self.builder = builder.extension_policies(ca_policy=ca, ee_policy=leaf)

    def __reduce__(self) -> tuple[object, ...]:
        """Between processes goes the certificate alone: what the library read of it stays in its process."""
        return type(self), (self.der,)

    def verify(self, leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> list[x509.Certificate]:
        """Verify a path to this root at a time when all of its certificates are valid, and return it.

        Whether that is the time at which the path is asked for stays to be checked, once what the leaf signed is.

        Raises:
            EvidenceError: there is no such time.
            cryptography.x509.verification.VerificationError: there is no such path.
        """
        given = (leaf, *others, self.certificate)
        begin = max(one.not_valid_before_utc for one in given)
        if begin > min(one.not_valid_after_utc for one in given):
            raise EvidenceError(f"at no time are all certificates under {self.subject} valid")
        return self.builder.time(begin).build_client_verifier().verify(leaf, list(others)).chain
