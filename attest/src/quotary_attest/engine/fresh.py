# SPDX-License-Identifier: Apache-2.0
"""Fresh quotes: the platform as it is now, over a caller's nonce (docs/spec/fresh-quote.md)."""

from __future__ import annotations

from dataclasses import replace

from quotary_attest.engine.assemble import support_of
from quotary_attest.engine.epochs import Epoch
from quotary_attest.engine.errors import NotQuotable, NotServed
from quotary_attest.engine.host import Host, TpmHost
from quotary_attest.engine.loop import Engine
from quotary_attest.roots import ForeignExtend, Quote
from quotary_verifier.wire.bindings import fresh_digest
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE


async def fresh_quote(host: Host, engine: Engine, nonce: bytes, model: str | None) -> bytes:
    """Return a fresh quote over a caller's nonce of 8 to 64 bytes; with `model`, its events stand in it in full.

    Raises:
        NotQuotable: the origin has no TPM.
        Unavailable: nothing can be quoted now.
        Busy: too many wait already.
        NotServed: the model is not measured.
        ValueError: the nonce has another length.
    """
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise ValueError(f"a nonce has {MIN_NONCE} to {MAX_NONCE} bytes")
    if not isinstance(host, TpmHost):
        raise NotQuotable(
            "this origin has no tpm that could quote",
            hint="a nonce in a request shows that its answer is new: send one with it",
        )
    quote, epoch = await _quote(host, engine, fresh_digest(host.origin, nonce))
    claim = None if model is None else epoch.claims.get(model)  # of the epoch that was quoted
    if model is not None and claim is None:
        raise NotServed(f"no model {model!r} is measured in the epoch in force")
    chain = quote.pcrs[host.tpm.chain_pcr]
    own, known = host.own_pcrs, host.endorsements.parts
    support = support_of(host.root.identifier, quote, chain, own, host.certificates, known)
    shown = epoch.view.reveal(None if claim is None else claim.event)
    whole = replace(support, workload_log=shown)
    return FreshQuote(nonce, host.genesis_record, quote.evidence, whole).encode()


async def _quote(host: TpmHost, engine: Engine, extra_data: bytes) -> tuple[Quote, Epoch]:
    """Quote 32 bytes between two commits, without an extend; also the epoch that is in force then."""
    found: list[tuple[Quote, Epoch]] = []

    async def job() -> None:
        quote = await host.root.quote(extra_data)
        pcr, expected = host.tpm.chain_pcr, engine.committer.position.chain
        if quote.pcrs[pcr] != expected:
            raise ForeignExtend(pcr, expected, quote.pcrs[pcr])
        found.append((quote, engine.epochs.current))

    await engine.aside(job)
    return found[0]
