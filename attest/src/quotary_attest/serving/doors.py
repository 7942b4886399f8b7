# SPDX-License-Identifier: Apache-2.0
"""Doors for clients of TEE proxies: `GET /v1/signature/{id}` and `GET /v1/attestation/report`.

The answers have the shape that those clients read, and in it only what is true of a TPM host; what each field is,
and what a client that checks no more than it did before learns from it, stands in
docs/reference/compatible-doors.md. No key signs anything for these doors: the one signature is the log's own over
its checkpoint, and the quote is a fresh quote, whose bound bytes no caller chooses.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from quotary_attest.engine.errors import Busy, UnknownOutput
from quotary_attest.serving.attester import Attester
from quotary_attest.serving.errors import Handler, Refusal, logger
from quotary_attest.serving.fulllogs import LOGS, wants_logs, with_logs
from quotary_attest.serving.notes import note_refusal
from quotary_attest.serving.reading import FETCH_SECONDS, fetch_waiting, find_output
from quotary_verifier.logs.workload import TYPE_MODEL, WorkloadLog, read_log
from quotary_verifier.tlog.note import TYPE_ED25519, key_id, parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Genesis
from quotary_verifier.wire.tpm import unpack_evidence

SIGNATURE_PATH: Final = "/v1/signature/{id}"
REPORT_PATH: Final = "/v1/attestation/report"
PREFIXES: Final = ("/v1/signature/", REPORT_PATH)

MAX_REPORTS: Final = 8
"""Reports that may wait for the TPM at a time: anybody may ask for one, and each costs a quote."""

_ALGORITHM: Final = "ed25519"
_NONCE_BYTES: Final = 32
_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})*")
_PCRS: Final = 16
# What those clients look for and a TPM host does not have.
_ABSENT: Final = ("intel_quote", "quote", "nvidia_payload", "event_log", "vm_config", "info")


def add_doors(
    app: web.Application,
    attester: Attester,
    model: Callable[[], str | None],
    *,
    seconds: float = FETCH_SECONDS,
) -> None:
    """Route both doors. `model` is asked for the model that answers now, None where none is claimed; `seconds` is how
    long a signature waits for an output that is on its way."""
    logger.info("GET %s and %s are answered by the proxy, not by the engine", SIGNATURE_PATH, REPORT_PATH)
    app.router.add_get(SIGNATURE_PATH, _signing(attester, seconds))
    app.router.add_get(REPORT_PATH, _Reports(attester, model).answer)


def _signing(attester: Attester, seconds: float) -> Handler:
    async def sign(request: web.Request) -> web.StreamResponse:
        if not _known_algorithm(request):
            return _wrong_algorithm()
        try:
            output_id = await find_output(attester, request, aliases=True)
            logs = wants_logs(request.query.getall(LOGS, []))
            attestation = await fetch_waiting(attester, output_id, seconds)
            if logs:
                attestation = await asyncio.to_thread(with_logs, attestation, attester.store)
        except UnknownOutput:
            return _not_found("Chat id not found or expired")
        except Refusal as refusal:
            if refusal.code != "bad_output_id":
                raise
            return _not_found("Chat id not found or expired")
        return _json(_signature(output_id, attestation))

    return sign


class _Reports:
    """Answers reports, only so many at a time."""

    def __init__(self, attester: Attester, model: Callable[[], str | None]) -> None:
        self._attester = attester
        self._model = model
        self._running = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if not _known_algorithm(request):
            return _wrong_algorithm()
        nonce = request.query.get("nonce")
        if nonce is None:
            nonce = secrets.token_hex(_NONCE_BYTES)
        elif not _HEX.fullmatch(nonce):
            return _refused(400, "invalid_request_error", "Nonce must be hex-encoded")
        elif len(nonce) != 2 * _NONCE_BYTES:
            return _refused(400, "invalid_request_error", "Nonce must be 32 bytes")
        model = self._model()
        report = _report(nonce, await self._quote(bytes.fromhex(nonce), model))
        wanted = request.query.get("signing_address")
        if wanted is not None and wanted.lower().removeprefix("0x") != report["signing_address"]:
            return _not_found("Signing address not found on this server")
        return _json(report | {"all_attestations": [report]})

    async def _quote(self, nonce: bytes, model: str | None) -> bytes:
        if self._running >= MAX_REPORTS:
            raise Busy(f"{MAX_REPORTS} reports wait for the tpm already")
        self._running += 1
        try:
            return await self._attester.fresh_quote(nonce, model=model)
        finally:
            self._running -= 1


def _signature(output_id: bytes, encoded: bytes) -> dict[str, Any]:
    """Return the answer of the signature door: the checkpoint that the output is in, and the log's signature."""
    attestation = Attestation.decode(encoded)
    genesis = Genesis.decode(attestation.genesis)
    origin = genesis.origin(attestation.genesis)
    note = parse_note(attestation.note)
    line = note.line(origin, key_id(origin, TYPE_ED25519, genesis.note_key))
    return {
        "text": note.text.decode(),
        "signature": None if line is None else line.payload.hex(),
        "signing_address": genesis.note_key.hex(),
        "signing_algo": _ALGORITHM,
        "signature_kind": "checkpoint",
        "origin": origin,
        "output_id": format_output_id(output_id),
        "attestation": base64.b64encode(encoded).decode(),
    }


def _report(nonce: str, encoded: bytes) -> dict[str, Any]:
    """Return the answer of the report door but for `all_attestations`: a fresh quote, taken apart."""
    fresh = FreshQuote.decode(encoded)
    genesis = Genesis.decode(fresh.genesis)
    attest, signature = unpack_evidence(fresh.evidence)
    log = read_log(fresh.support.workload_log)
    shown = [logged.event for logged in log.current if logged.event is not None]
    model = next((event for event in shown if event.type == TYPE_MODEL), None)  # one at most is in full
    return dict.fromkeys(_ABSENT) | {
        "model": None if model is None else model.name,
        "model_weights": None if model is None else model.digest.hex(),
        "signing_address": genesis.note_key.hex(),
        "signing_public_key": genesis.note_key.hex(),
        "signing_algo": _ALGORITHM,
        "request_nonce": nonce,
        "evidence_kind": "tpm2-quote",
        "origin": genesis.origin(fresh.genesis),
        "genesis": fresh.genesis.hex(),
        "tpm_quote": attest.hex(),
        "tpm_signature": signature.hex(),
        "tpm_pcrs": {str(pcr): value.hex() for pcr, value in _pcrs(genesis, fresh, log).items()},
        "ak_public": None if genesis.tpm is None else genesis.tpm.ak.hex(),
        "ak_certificates": [base64.b64encode(item).decode() for item in fresh.support.certificates],
        "fresh_quote": base64.b64encode(encoded).decode(),
    }


def _pcrs(genesis: Genesis, fresh: FreshQuote, log: WorkloadLog) -> dict[int, bytes]:
    """Return the sixteen values that the quote covers."""
    values = dict.fromkeys(range(_PCRS), ZERO) | dict(fresh.support.pcrs)
    if genesis.tpm is not None:
        values[genesis.tpm.chain_pcr] = fresh.support.chain_before
        values[genesis.tpm.workload_pcr] = log.value
    return values


def _known_algorithm(request: web.Request) -> bool:
    return request.query.get("signing_algo", _ALGORITHM) == _ALGORITHM


def _wrong_algorithm() -> web.Response:
    message = f"Invalid signing algorithm. Must be '{_ALGORITHM}'"
    return _refused(400, "invalid_signing_algo", message)


def _not_found(message: str) -> web.Response:
    return _refused(404, "not_found", message)


def _refused(status: int, kind: str, message: str) -> web.Response:
    """Return an error as those clients know it: its `code` is null."""
    error = {"message": message, "type": kind, "param": None, "code": None}
    response = web.Response(
        status=status, body=json.dumps({"error": error}).encode(), content_type="application/json"
    )
    note_refusal(response, kind)
    return response


def _json(value: dict[str, Any]) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(body=json.dumps(value).encode(), headers=headers)
