# SPDX-License-Identifier: Apache-2.0
"""`attest agent enroll`: get a certificate for the host's AK from a CA, by files (docs/spec/enrolment.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quotary_cli.agent_tee import require_tpm
from quotary_cli.agent_tpm import reach_tpm, state_option, tpm_option
from quotary_cli.enrolment import (
    FILE,
    failures,
    json_option,
    now,
    out_option,
    read_certificate,
    read_file,
    read_passphrase,
    show,
    write_file,
)
from quotary_cli.lazy import InOrder

if TYPE_CHECKING:
    from quotary_attest.tpm.model import Authorizations

SCHEMA = "quotary-enroll/v1"

auth_option = click.option(
    "--endorsement-auth-file", type=FILE, help="File whose first line authorises the endorsement hierarchy."
)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
def enroll() -> None:
    """Get a certificate for this host's attestation key.

    \b
    1. attest agent enroll request     on the host
    2. attest ca challenge             at the CA
    3. attest agent enroll activate    on the host
    4. attest ca issue                 at the CA
    5. attest agent enroll install     on the host
    """


@enroll.command(short_help="Write a request, to be carried to the CA.")
@state_option
@tpm_option
@auth_option
@click.option(
    "--ek", "kind", type=click.Choice(["ecc-p256", "ecc-p384", "rsa-2048"]), help="Use this endorsement key."
)
@click.option(
    "--ek-certificate", type=FILE, help="The endorsement key's certificate, where the TPM does not hold it."
)
@click.option(
    "--ek-intermediate", multiple=True, type=FILE, help="A certificate between it and the vendor's root."
)
@out_option
@json_option
def request(
    state: Path,
    tpm: str | None,
    endorsement_auth_file: Path | None,
    kind: str | None,
    ek_certificate: Path | None,
    ek_intermediate: tuple[Path, ...],
    out: Path,
    as_json: bool,
) -> None:
    """Write a request for the origin in the state folder, to be carried to the CA."""
    certificate = None if ek_certificate is None else read_certificate(ek_certificate)
    intermediates = [read_certificate(path) for path in ek_intermediate]
    with failures(install="quotary[tpm]"):
        require_tpm(state)
        from quotary_attest.enrol.host import make_request
        from quotary_attest.state import read_identity
        from quotary_attest.tpm.connection import Connection

        with reach_tpm(state, tpm) as tcti, Connection(tcti) as connection:
            made = make_request(
                connection,
                state,
                kind=kind,
                certificate=certificate,
                intermediates=intermediates,
                authorizations=_authorizations(endorsement_auth_file),
            )
        origin = read_identity(state).origin
    write_file(out, made)
    show({"schema": SCHEMA, "request": str(out), "origin": origin}, as_json=as_json)


@enroll.command(short_help="Open the CA's challenge with the TPM.")
@click.argument("challenge", type=FILE)
@state_option
@tpm_option
@auth_option
@out_option
@json_option
def activate(
    challenge: Path,
    state: Path,
    tpm: str | None,
    endorsement_auth_file: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Open the CA's CHALLENGE with the TPM and write the answer."""
    data = read_file(challenge)
    with failures(install="quotary[tpm]"):
        require_tpm(state)
        from quotary_attest.enrol.host import activate as open_challenge
        from quotary_attest.tpm.connection import Connection

        with reach_tpm(state, tpm) as tcti, Connection(tcti) as connection:
            authorizations = _authorizations(endorsement_auth_file)
            made = open_challenge(connection, state, data, now(), authorizations=authorizations)
    write_file(out, made)
    show({"schema": SCHEMA, "activation": str(out)}, as_json=as_json)


@enroll.command(short_help="Check the CA's grant and install its certificate.")
@click.argument("grant", type=FILE)
@state_option
@click.option(
    "--root", type=FILE, help="The CA's root certificate as you know it; another CA's grant is refused."
)
@json_option
def install(grant: Path, state: Path, root: Path | None, as_json: bool) -> None:
    """Check the CA's GRANT and install its certificate, which a running agent uses after SIGHUP."""
    data = read_file(grant)
    anchor = None if root is None else read_certificate(root)
    with failures(install="quotary[tpm]"):
        require_tpm(state)
        from quotary_attest.enrol.host import install as install_grant
        from quotary_attest.enrol.ledger import format_time

        done = install_grant(state, data, now(), root=anchor)
    certificate = done.endorsement
    show(
        {
            "schema": SCHEMA,
            "origin": done.identity.origin,
            "ca": certificate.authority,
            "ca_sha256": certificate.authority_sha256.hex(),
            "tpm": [
                text
                for text in (certificate.tpm_manufacturer, certificate.tpm_model, certificate.tpm_version)
                if text is not None
            ],
            "not_after": format_time(certificate.not_after),
        },
        as_json=as_json,
    )


def _authorizations(path: Path | None) -> Authorizations | None:
    from quotary_attest.tpm.model import Authorizations

    secret = read_passphrase(path)
    return None if secret is None else Authorizations(endorsement=secret)
