# SPDX-License-Identifier: Apache-2.0
"""The fresh quote: a quote over a caller's nonce, which speaks for the platform now and for no output.

It is an artefact of its own (docs/spec/fresh-quote.md, design section 3, "Hardware line"): what the TPM signs is
`bindings.fresh_digest(origin, nonce)`, so that no caller ever chooses bytes that a root signs, and a fresh quote
can never stand for a commit. Reading one authenticates nothing.
"""

from __future__ import annotations

from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_ATTESTATION, MAX_EVIDENCE, MAX_NONCE, MAX_RECORD, MIN_NONCE

KIND_FRESH = 19
MEDIA_TYPE = "application/vnd.quotary.fresh-quote+cbor"


@frozen
class FreshQuote:
    """A fresh quote as read: of the right form, and not authenticated by anything yet.

    `nonce` has 8 to 64 bytes, `evidence` is laid out as in a hardware line (u16, TPMS_ATTEST, u16,
    TPMT_SIGNATURE). In `support` the field `chain_before` holds the quoted value of the chain PCR itself,
    because a fresh quote extends nothing.
    """

    nonce: bytes
    genesis: bytes
    evidence: bytes
    support: TpmSupport
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the artefact's bytes."""
        return cbor.encode(
            {
                0: KIND_FRESH,
                1: 1,
                2: self.nonce,
                3: self.genesis,
                4: self.evidence,
                5: self.support.fields(),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> FreshQuote:
        """Read a fresh quote.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(data, max_bytes=MAX_ATTESTATION, what="fresh quote"), "fresh quote", KIND_FRESH
        )
        return cls(
            nonce=fields.octets(2, MIN_NONCE, MAX_NONCE),
            genesis=fields.octets(3, 1, MAX_RECORD),
            evidence=fields.octets(4, 1, MAX_EVIDENCE),
            support=TpmSupport.read(fields.mapping(5, 8)),
            not_understood=fields.finish(),
        )
