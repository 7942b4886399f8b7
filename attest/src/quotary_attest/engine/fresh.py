# SPDX-License-Identifier: Apache-2.0
"""Fresh quotes: the platform as it is now, over a caller's nonce (docs/spec/fresh-quote.md)."""

from __future__ import annotations

from dataclasses import replace

from quotary_attest.engine.assemble import support_of
from quotary_attest.engine.errors import NotServed
from quotary_attest.engine.host import Host
from quotary_attest.engine.loop import Engine
from quotary_verifier.wire.bindings import fresh_digest
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE


async def fresh_quote(host: Host, engine: Engine, nonce: bytes, model: str | None) -> bytes:
    """Return a fresh quote over a caller's nonce of 8 to 64 bytes; with `model`, its events stand in it in full.

    Raises:
        Unavailable: nothing can be quoted now.
        Busy: too many wait already.
        NotServed: the model is not measured.
        ValueError: the nonce has another length.
    """
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise ValueError(f"a nonce has {MIN_NONCE} to {MAX_NONCE} bytes")
    quote, epoch = await engine.quote(fresh_digest(host.origin, nonce))
    claim = None if model is None else epoch.claims.get(model)  # of the epoch that was quoted
    if model is not None and claim is None:
        raise NotServed(f"no model {model!r} is measured in the epoch in force")
    chain = quote.pcrs[host.tpm.chain_pcr]
    support = support_of(host.root.identifier, quote, chain, host.own_pcrs, host.certificates)
    shown = epoch.view.reveal(None if claim is None else claim.event)
    whole = replace(support, workload_log=shown)
    return FreshQuote(nonce, host.genesis_record, quote.evidence, whole).encode()
