# SPDX-License-Identifier: Apache-2.0
"""What whoever makes an answer notes on it for whoever counts answers (`quotary_attest.serving.traffic`)."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from quotary_attest.metrics import Carried, ServingMetrics, Unattested

_REFUSAL: Final = web.ResponseKey("refusal", str)
_CARRIED: Final = web.ResponseKey("carried", Carried)
_UNATTESTED: Final = web.ResponseKey("unattested", Unattested)


def note_refusal(response: web.StreamResponse, code: str) -> None:
    """Note that the answer is, or ended with, an error of our own."""
    response[_REFUSAL] = code


def note_carried(response: web.StreamResponse, how: Carried) -> None:
    """Note that the answer is attested, and how its client gets the attestation."""
    response[_CARRIED] = how


def note_unattested(response: web.StreamResponse, why: Unattested) -> None:
    """Note that the answer goes out without an attestation."""
    response[_UNATTESTED] = why


def count_answer(response: web.StreamResponse, metrics: ServingMetrics) -> None:
    """Count an answer by what is noted on it; nothing where nothing is."""
    if (code := response.get(_REFUSAL)) is not None:
        metrics.refused(code)
    elif (how := response.get(_CARRIED)) is not None:
        metrics.delivered(how)
    elif (why := response.get(_UNATTESTED)) is not None:
        metrics.unattested(why)
