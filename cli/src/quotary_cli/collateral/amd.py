# SPDX-License-Identifier: Apache-2.0
"""Certificates for an SEV-SNP report, from AMD's Key Distribution Service (AMD 57230, "VCEK Certificate and KDS")."""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from quotary_cli.collateral.web import Fetch, NotPublished
from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import AmdRoots, Generation, SigningKey
from quotary_verifier.evidence.tee.snp import SnpClaims, SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.snp_report import SnpReport, parse_snp_report, parse_tcb

KDS: Final = "https://kdsintf.amd.com"

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_CHAIN: Final = 2  # ASK, ARK
_CHIP_BYTES: Final = {Generation.TURIN: 8}
_NAMES: Final = {"fmc": "fmc", "bootloader": "bl", "tee": "tee", "snp": "snp", "microcode": "ucode"}


def fetch_snp(
    data: bytes, fetch: Fetch, at: datetime, *, base: str = KDS, roots: AmdRoots | None = None
) -> tuple[SnpEndorsements, SnpClaims]:
    """Return what vouches for a report, verified with it at a time; ARKs are the pinned ones, never a server's.

    Raises:
        MalformedError, EvidenceError: the report, or what the server gave, does not hold.
        UnsupportedError: AMD publishes nothing for such a report.
        Failure: the server could not be asked.
    """
    report = parse_snp_report(data)
    if report.signing_key is SigningKey.VLEK:
        raise UnsupportedError(
            "amd publishes no vlek: its certificate stands in the table that the host hands to the guest"
        )
    if not any(report.chip_id):
        raise UnsupportedError("the report does not name its chip, so amd cannot be asked for its key")
    endorsements = _endorsements(report, fetch, base)
    claims = verify_snp(data, endorsements, at, report_data=report.report_data, roots=roots)
    return endorsements, claims


def _endorsements(report: SnpReport, fetch: Fetch, base: str) -> SnpEndorsements:
    generation, leaf = _leaf(report, fetch, base)
    where = f"{base}/vcek/v1/{generation.value}"
    chain = _PEM.findall(fetch(f"{where}/cert_chain").body)
    if len(chain) != _CHAIN:
        raise MalformedError(f"amd's chain has {len(chain)} certificates, {_CHAIN} are expected")
    try:
        crls: tuple[bytes, ...] = (fetch(f"{where}/crl").body,)
    except NotPublished:
        crls = ()
    return SnpEndorsements(leaf, a2b_base64(chain[0]), crls)


def _leaf(report: SnpReport, fetch: Fetch, base: str) -> tuple[Generation, bytes]:
    """The VCEK; a report of version 2 does not say which generation it is of, so AMD is asked for either."""
    candidates = list(_generations(report))
    for generation in candidates:
        try:
            return generation, fetch(_url(report, generation, base)).body
        except NotPublished:
            continue
    names = " or ".join(generation.value for generation in candidates)
    raise UnsupportedError(f"amd knows no {names} processor with this id and this firmware")


def _generations(report: SnpReport) -> Iterator[Generation]:
    known = report.generation()
    yield from (Generation.MILAN, Generation.GENOA) if known is None else (known,)


def _url(report: SnpReport, generation: Generation, base: str) -> str:
    chip = report.chip_id[: _CHIP_BYTES.get(generation, len(report.chip_id))]
    versions = parse_tcb(report.reported_tcb, generation).components()
    query = "&".join(f"{_NAMES[name]}SPL={value:02d}" for name, value in versions.items())
    return f"{base}/vcek/v1/{generation.value}/{chip.hex()}?{query}"
