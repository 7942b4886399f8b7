# SPDX-License-Identifier: Apache-2.0
"""What a relying party accepts (docs/spec/policy.md). There is no verification without a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from cryptography.x509 import CertificateRevocationList

from quotary_verifier.errors import PolicyError
from quotary_verifier.pki.chain import TrustAnchors
from quotary_verifier.tlog.note import VerifierKey
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.records import Link, State

_WRITER_PCRS = frozenset({4, 8, 9, 10, 11})


@frozen
class Authority:
    """A CA whose certificates vouch for AKs. `hosts` narrows the host names: exact, or `*.` and a suffix.

    `crls` are lists that the relying party brings; with `revocation_required` they must cover a certificate.
    """

    name: str
    anchors: TrustAnchors
    hosts: tuple[str, ...] = ()
    crls: tuple[CertificateRevocationList, ...] = ()
    revocation_required: bool = False

    def speaks_for(self, host: str) -> bool:
        """Tell whether this authority may endorse a host name."""
        if not self.hosts:
            return True
        return any(
            host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))
            for pattern in self.hosts
        )


@frozen
class AllowedModel:
    """One model that may have served. `weights` None allows any weights of that name."""

    name: str | None
    weights: bytes | None
    link: Link = Link.CONFIGURED


@frozen
class Freshness:
    """What shows that an output is not older than it should be.

    `nonce`: the caller must give a nonce and the record must carry it; `expected_nonce` is that nonce, where the policy
    was written for one exchange and the caller need not give it. `max_age` in seconds is measured from the
    earliest time that a witness quorum shows, or from the record's own time if `trust_host_clock`.
    """

    nonce: bool = False
    expected_nonce: bytes | None = None
    max_age: int | None = None
    trust_host_clock: bool = False


@frozen
class Witnesses:
    """The witnesses whose cosignatures count, and how many of them a quorum takes (0: none required)."""

    keys: tuple[VerifierKey, ...] = ()
    threshold: int = 0


@frozen
class Policy:
    """A parsed policy. `digest` is the SHA-256 of its bytes.

    Raises:
        PolicyError: on construction, if it trusts nobody.
    """

    digest: bytes
    description: str
    authorities: tuple[Authority, ...]
    pins: frozenset[str]
    software_tpm: bool = False
    unauthenticated_ak: bool = False
    safe_clock: bool = False
    pcrs: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    models: tuple[AllowedModel, ...] = ()
    opaque_events: bool = True
    states: frozenset[State] = frozenset({State.COMPLETE})
    freshness: Freshness = Freshness()
    witnesses: Witnesses = Witnesses()

    @property
    def pins_the_writer(self) -> bool:
        """Whether the PCRs that the policy fixes say which kernel and programs wrote the workload log.

        One of them must be of the loader and kernel (4, 8, 9, 11) or of IMA (10): the others leave both open.
        """
        return not _WRITER_PCRS.isdisjoint(self.pcrs)

    def __post_init__(self) -> None:
        if not self.authorities and not self.pins:
            raise PolicyError("the policy names no authority and pins no origin: it would accept nothing")
