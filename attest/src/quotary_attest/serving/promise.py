# SPDX-License-Identifier: Apache-2.0
"""What an agent's proxies promise of their answers (docs/spec/records.md, "Statement")."""

from __future__ import annotations

from collections.abc import Iterable

from quotary_attest.serving.exchange import ProxyConfig
from quotary_attest.serving.paths import Api
from quotary_verifier.wire.declaration import CODED, UNAVAILABLE, Declaration, Service


def declaration_of(configs: Iterable[ProxyConfig]) -> Declaration:
    """Return what proxies of these settings attest: one service for each, and none for one that attests nothing.

    A door that attests nothing still answers, so with one among them nothing is promised of any.
    """
    services = [_service_of(config) for config in configs]
    return Declaration.of([service for service in services if service is not None] if all(services) else [])


def _service_of(config: ProxyConfig) -> Service | None:
    rules = config.paths.rules
    attested = sorted(path for path, api in rules.items() if api is not Api.NONE)
    if not attested:
        return None
    patterns = any("*" in path.split("/") for path in attested)
    left_out = sorted(path for path, api in rules.items() if api is Api.NONE) if patterns else []
    unless = [CODED, UNAVAILABLE] if config.when_unavailable == "pass" else []
    return Service(tuple(attested), tuple(unless), tuple(left_out))
