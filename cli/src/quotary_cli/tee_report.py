# SPDX-License-Identifier: Apache-2.0
"""`attest tee report`: evidence of this machine in a file, to look at and to fetch collateral for.

What it binds is fixed, and no commit: nobody chooses bytes that a root signs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import click

from quotary_cli.agent_tpm import DEFAULT_TPM, host_failures
from quotary_cli.enrolment import json_option
from quotary_cli.output import print_json

SCHEMA = "quotary-tee-report/v1"
KINDS: Final = ("sev-snp", "tdx", "nitro", "nitro-tpm", "nvidia", "cca", "azure")

BOUND: Final = hashlib.sha512(b"quotary/tee-report/v1\n\0").digest()
"""What such evidence binds, as an SNP report, quote, user data and nonce, or nonce."""


@click.command()
@click.argument("kind", metavar="KIND", type=click.Choice(KINDS))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--tpm", default=DEFAULT_TPM, show_default=True, metavar="TSS", help="The vTPM, with azure.")
@click.option("--privlevel", type=click.IntRange(0, 3), help="VMPL to ask as, with sev-snp.")
@json_option
def report(kind: str, file: Path, tpm: str, privlevel: int | None, as_json: bool) -> None:
    """Write evidence of this machine into FILE: a report, quote or document that binds nothing of anybody's.

    KIND is sev-snp, tdx, nitro, nitro-tpm, nvidia, cca or azure.

    `attest inspect FILE` shows it, and `attest tee fetch-collateral FILE` asks its maker what vouches for it.
    """
    with host_failures():
        evidence = _azure(tpm) if kind == "azure" else _collect(kind, privlevel)
        file.write_bytes(evidence)
    digest = hashlib.sha256(evidence).hexdigest()
    if as_json:
        print_json({"schema": SCHEMA, "kind": kind, "bytes": len(evidence), "sha256": digest})
    else:
        click.echo(f"{len(evidence)} bytes, sha-256 {digest}")


def _collect(kind: str, privlevel: int | None) -> bytes:
    from quotary_attest.tee.opening import open_device

    return open_device(kind, privlevel=privlevel).collect(BOUND).evidence


def _azure(tcti: str) -> bytes:
    from quotary_attest.tpm.azure import read_hcl_report
    from quotary_attest.tpm.connection import Connection

    with Connection(tcti) as connection:
        return read_hcl_report(connection)
