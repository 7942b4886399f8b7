# SPDX-License-Identifier: Apache-2.0
"""`attest ca`: a small certificate authority that endorses the AKs of hosts, by files (docs/spec/enrolment.md)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quotary_cli.enrolment import (
    FILE,
    FOLDER,
    failures,
    json_option,
    now,
    out_option,
    read_anchors,
    read_file,
    read_passphrase,
    show,
    write_file,
)
from quotary_cli.lazy import InOrder
from quotary_cli.output import clean, print_json

if TYPE_CHECKING:
    from cryptography import x509

    from quotary_attest.enrol.ledger import Entry
    from quotary_attest.enrol.store import Pending

SCHEMA = "quotary-ca/v1"
_LONGEST_DAYS = 36_500

passphrase_option = click.option(
    "--passphrase-file", type=FILE, help="File whose first line is the passphrase of the CA's key."
)


def _finite(hours: float) -> float:
    if math.isnan(hours):  # which is in every range, as it is above and below nothing
        raise click.BadParameter("not a number of hours")
    return hours


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
def ca() -> None:
    """Run a certificate authority that endorses hosts.

    A host's request is answered by a challenge that only its TPM opens, and its activation by a certificate.
    Everything travels as files; the CA needs no TPM and no network.
    """


@ca.command(short_help="Make a CA: a key and a self-signed root.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--name", required=True, help="Common name of the root. Short is good: it stands in every certificate."
)
@click.option(
    "--days", type=click.IntRange(1, _LONGEST_DAYS), default=3650, show_default=True, help="Life of the root."
)
@passphrase_option
@json_option
def init(folder: Path, name: str, days: int, passphrase_file: Path | None, as_json: bool) -> None:
    """Make a CA in the new or empty FOLDER: a key and a self-signed root."""
    passphrase = read_passphrase(passphrase_file)
    with failures():
        from quotary_attest.enrol.store import create_ca

        root = create_ca(folder, name=name, now=now(), days=days, passphrase=passphrase)
    show({"schema": SCHEMA, "folder": str(folder), **_describe_root(root)}, as_json=as_json)


@ca.command(short_help="Answer a host's request with a challenge.")
@click.argument("folder", type=FOLDER)
@click.argument("request", type=FILE)
@click.option(
    "--ek-roots",
    required=True,
    multiple=True,
    type=FILE,
    help="PEM file of TPM manufacturers' roots that you trust, and their intermediates. May be given again.",
)
@click.option("--host", help="Accept the request only for this host name.")
@click.option(
    "--days",
    type=click.IntRange(1, _LONGEST_DAYS),
    default=365,
    show_default=True,
    help="Life of the certificate.",
)
@click.option(
    "--hours",
    type=click.FloatRange(0, 8760, min_open=True),
    callback=lambda _context, _option, value: _finite(value),
    default=24.0,
    show_default=True,
    help="Life of the challenge.",
)
@click.option("--replace", is_flag=True, help="Give up what is enrolled for this host name or AK already.")
@out_option
@json_option
def challenge(
    folder: Path,
    request: Path,
    ek_roots: tuple[Path, ...],
    host: str | None,
    days: int,
    hours: float,
    replace: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Answer a host's REQUEST with a challenge that only its TPM opens."""
    anchors = read_anchors(ek_roots)
    data = read_file(request)
    with failures():
        from quotary_attest.enrol.ca import Terms
        from quotary_attest.enrol.ca import challenge as make_challenge
        from quotary_attest.enrol.files import Challenge
        from quotary_attest.enrol.store import CaFolder

        terms = Terms(anchors, host=host, days=days, hours=hours, replace=replace)
        made = make_challenge(CaFolder(folder), data, terms, now())
        identity = Challenge.decode(made).identity
    write_file(out, made)
    show({"schema": SCHEMA, "challenge": str(out), **_describe(identity)}, as_json=as_json)


@ca.command(short_help="Answer a host's activation with its certificate.")
@click.argument("folder", type=FOLDER)
@click.argument("activation", type=FILE)
@passphrase_option
@out_option
@json_option
def issue(folder: Path, activation: Path, passphrase_file: Path | None, out: Path, as_json: bool) -> None:
    """Answer a host's ACTIVATION with its certificate. A challenge can be answered once."""
    passphrase = read_passphrase(passphrase_file)
    data = read_file(activation)
    with failures():
        from quotary_attest.enrol.ca import issue as make_grant
        from quotary_attest.enrol.store import CaFolder

        opened = CaFolder(folder)
        made = make_grant(opened, opened.issuer(passphrase), data, now())
    write_file(out, made.grant)
    show({"schema": SCHEMA, "grant": str(out), **_describe_entry(made.entry)}, as_json=as_json)


@ca.command(name="show", short_help="Show a CA, its certificates and open challenges.")
@click.argument("folder", type=FOLDER)
@click.option("--root", is_flag=True, help="Print only the root certificate as PEM, for a policy.")
@json_option
def show_ca(folder: Path, root: bool, as_json: bool) -> None:
    """Show a CA: its root, the certificates it issued, and the challenges that are open."""
    with failures():
        from quotary_attest.enrol.store import CaFolder

        opened = CaFolder(folder)
        if root:
            click.echo(opened.root_pem.decode("ascii"), nl=False)
            return
        described = _describe_root(opened.root)
        entries = [_describe_entry(entry) for entry in opened.ledger.entries()]
        pending = [_describe_pending(item) for item in opened.pending()]
    if as_json:
        pem = opened.root_pem.decode("ascii")
        print_json({"schema": SCHEMA, "root": described | {"pem": pem}, "issued": entries, "open": pending})
        return
    show(described, as_json=False)
    for title, rows in (("issued", entries), ("open", pending)):
        for row in rows:
            until = row.get("not_after") or row["expires"]
            click.echo(clean(f"{title:<8}{row['origin']}  until {until}"))


def _describe_root(root: x509.Certificate) -> dict[str, Any]:
    from cryptography.hazmat.primitives import hashes

    from quotary_attest.enrol.ledger import format_time

    return {
        "name": root.subject.rfc4514_string(),
        "sha256": root.fingerprint(hashes.SHA256()).hex(),
        "not_after": format_time(root.not_valid_after_utc),
    }


def _describe(identity: Any) -> dict[str, Any]:
    return {
        "host": identity.host,
        "origin": identity.origin,
        "ak_name": identity.ak_name.hex(),
        "ek_sha256": identity.ek_digest.hex(),
    }


def _describe_entry(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.line().items() if key != "certificate"}


def _describe_pending(pending: Pending) -> dict[str, Any]:
    from datetime import UTC, datetime

    from quotary_attest.enrol.ledger import format_time

    expires = format_time(datetime.fromtimestamp(pending.expires / 1000, UTC))
    return {"id": pending.challenge_id, **_describe(pending.identity), "expires": expires}
