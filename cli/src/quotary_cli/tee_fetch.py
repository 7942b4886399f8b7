# SPDX-License-Identifier: Apache-2.0
"""`attest tee fetch-collateral`: the only command that contacts a maker of hardware."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quotary_cli.collateral.amd import KDS, fetch_snp
from quotary_cli.collateral.intel import CERTIFICATES, PCS, fetch_tdx
from quotary_cli.collateral.web import Fetch, web_fetch
from quotary_cli.enrolment import FILE, failures, json_option, now
from quotary_cli.output import clean, note, print_json
from quotary_verifier.errors import UnsupportedError
from quotary_verifier.evidence.tee.azure import verify_azure
from quotary_verifier.evidence.tee.azure_hcl import SNP, parse_hcl_report
from quotary_verifier.evidence.tee.lines import snp_support, tdx_support

if TYPE_CHECKING:
    from quotary_verifier.evidence.tee.shape import TeeClaims
    from quotary_verifier.wire.tee_support import TeeSupport

SCHEMA = "quotary-tee-collateral/v1"
_MAX_EVIDENCE = 1 << 20
_SNP_BYTES = 1184
_TDX_TYPE = b"\x81\0\0\0"


@dataclass(frozen=True, slots=True)
class Makers:
    """Where the makers' servers, or mirrors of them, are."""

    amd: str
    intel: str
    intel_certificates: str


Found = tuple["TeeSupport", "TeeClaims"]


@click.command("fetch-collateral")
@click.argument("evidence", nargs=-1, required=True, type=FILE)
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to keep it in, one file for each evidence; it is made where it is missing.",
)
@click.option("--amd", default=KDS, show_default=True, metavar="URL", help="AMD's server, or a mirror.")
@click.option("--intel", default=PCS, show_default=True, metavar="URL", help="Intel's server, or a mirror.")
@click.option(
    "--intel-certificates",
    default=CERTIFICATES,
    show_default=True,
    metavar="URL",
    help="Intel's server of root CRLs, or a mirror.",
)
@json_option
def fetch_collateral(
    evidence: tuple[Path, ...], out: Path, amd: str, intel: str, intel_certificates: str, as_json: bool
) -> None:
    """Ask the makers of the hardware what vouches for EVIDENCE, verify it, and keep it beside.

    EVIDENCE are files with an SEV-SNP report, a TDX quote or an Azure HCL report. Each address is said before it is
    contacted; AMD and Intel then know that somebody asks for this processor. Nothing is kept that does not verify, with
    the evidence, at this time and under the pinned roots.
    """
    makers = Makers(amd.rstrip("/"), intel.rstrip("/"), intel_certificates.rstrip("/"))
    fetch = _remembering(web_fetch(lambda url: note(f"contacting {url}")))
    kept = []
    with failures():
        from quotary_attest.tee.archive import store

        for file in evidence:
            with file.open("rb") as opened:
                data = opened.read(_MAX_EVIDENCE + 1)
            support, claims = collateral_of(data, fetch, now(), makers)
            kept.append(_kept(file, store(out, data, support), support, claims))
    if as_json:
        print_json({"schema": SCHEMA, "kept": kept})
        return
    for each in kept:
        click.echo(f"{clean(each['evidence'])}: {each['kind']}, verified {', '.join(each['shown'])}")
        click.echo(f"  kept as {clean(each['file'])}")
        if each["not_shown"]:
            click.echo(f"  not shown: {', '.join(each['not_shown'])}")


def collateral_of(data: bytes, fetch: Fetch, at: datetime, makers: Makers) -> Found:
    """Return what vouches for evidence, and what it then shows. Raises as `fetch_snp` and `fetch_tdx`."""
    if data[:4] == b"HCLA":
        return _azure(data, fetch, at, makers)
    if len(data) == _SNP_BYTES:
        endorsements, snp = fetch_snp(data, fetch, at, base=makers.amd)
        return snp_support(endorsements), snp
    if data[4:8] == _TDX_TYPE:
        collateral, tdx = fetch_tdx(
            data, fetch, at, base=makers.intel, certificates=makers.intel_certificates
        )
        return tdx_support(collateral), tdx
    raise UnsupportedError(
        "no maker publishes collateral for such evidence, but for sev-snp reports, tdx quotes and azure hcl reports: "
        "nitro and nvidia evidence brings its own, and the key of an arm cca platform comes from who sold it"
    )


def _azure(data: bytes, fetch: Fetch, at: datetime, makers: Makers) -> Found:
    report = parse_hcl_report(data)
    if report.hardware_type != SNP:
        raise UnsupportedError("the quote for a tdx vm on azure is made by its own host, not by intel")
    endorsements, _ = fetch_snp(report.hardware, fetch, at, base=makers.amd)
    return snp_support(endorsements), verify_azure(data, endorsements, at)


def _remembering(fetch: Fetch) -> Fetch:
    """Ask for each address once, as AMD's server slows down who asks often."""
    known: dict[str, Any] = {}

    def once(url: str) -> Any:
        if url not in known:
            known[url] = fetch(url)
        return known[url]

    return once


def _kept(file: Path, stored: Path, support: TeeSupport, claims: TeeClaims) -> dict[str, Any]:
    return {
        "evidence": str(file),
        "kind": claims.kind,
        "file": str(stored),
        "endorsements": {name: [len(part) for part in parts] for name, parts in support.endorsements.items()},
        "shown": list(claims.shown),
        "not_shown": list(claims.not_shown),
    }
