# SPDX-License-Identifier: Apache-2.0
"""Makes fresh quotes with keys of its own, so that tests can make false ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from forge import Forge

from quotary_verifier.logs.workload import reveal
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.bindings import chain_extend, fresh_digest
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.tpm import pack_evidence

NONCE = b"caller's" * 4


def made(forge: Forge, *, nonce: bytes = NONCE, binds: bytes | None = None, **fields: Any) -> FreshQuote:
    """A fresh quote of a forged host; `binds` is what it binds instead of the nonce's digest."""
    digest = fresh_digest(forge.origin, nonce) if binds is None else binds
    quote = replace(forge.quote(digest, forge.events()), **fields)
    attest = quote.encode()
    certificates = () if forge.certificate is None else (forge.certificate,)
    support = TpmSupport(
        IDENTIFIER_TPM2_QUOTE,
        dict(forge.pcrs),
        chain_extend(forge.before, digest),
        certificates,
        reveal(forge.events(), forge.keep),
    )
    return FreshQuote(nonce, forge.genesis_record, pack_evidence(attest, forge.sign(attest)), support)
