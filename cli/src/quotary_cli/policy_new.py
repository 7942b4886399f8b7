# SPDX-License-Identifier: Apache-2.0
"""`attest policy new`: a policy from a template, with remarks."""

from __future__ import annotations

from pathlib import Path

import click

from quotary_cli.enrolment import FILE
from quotary_cli.output import ExitCode, Failure, note
from quotary_cli.policy_templates import NO_MODEL, TEMPLATES
from quotary_cli.policyfile import read_bytes
from quotary_cli.tomltext import string, strings, table
from quotary_verifier import PolicyError
from quotary_verifier.policy.load import SCHEMA, load_policy

_MAX_PEM = 4 * 1024 * 1024


@click.command()
@click.option(
    "--template",
    required=True,
    type=click.Choice(list(TEMPLATES)),
    help="strict refuses what you have not decided, confidential-vm what was not launched as you say;"
    " cloud-vtpm and model-only ask for less.",
)
@click.option("--pin", "pins", multiple=True, metavar="ORIGIN", help="Trust this origin. May be given again.")
@click.option(
    "--authority", "authorities", multiple=True, type=FILE, help="Trust this CA (PEM). May be given again."
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Host names for --authority; *.suffix for any below.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=SHA256",
    help="A model that may serve, with the digest of its weights. May be given again.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it (default: standard output).",
)
def new(
    template: str,
    pins: tuple[str, ...],
    authorities: tuple[Path, ...],
    hosts: tuple[str, ...],
    models: tuple[str, ...],
    out: Path | None,
) -> None:
    """Make a policy from a template, with a remark at each rule.

    It must say whom to trust: an origin, or the CA that endorses the hosts. It never overwrites a policy.
    """
    if not pins and not authorities:
        raise Failure(
            "--pin or --authority must say whom to trust",
            code=ExitCode.USAGE,
            hint="the origin is what `attest agent init` printed, the CA what `attest ca show --root` prints",
        )
    if hosts and not authorities:
        raise Failure("--host goes with --authority", code=ExitCode.USAGE)
    if template == "confidential-vm" and not pins:
        raise Failure(
            "an origin without a TPM has no key that an authority could endorse",
            code=ExitCode.USAGE,
            hint="name it with --pin: it is what `attest agent init --tee` printed",
        )
    if template == "model-only" and not models:
        raise Failure(
            "a policy of this template without a model would accept any",
            code=ExitCode.USAGE,
            hint="name one with --model; `attest agent measure FILE` prints the digest of its weights",
        )
    trust = "\n".join([*map(_pin, pins), *(_authority(path, hosts) for path in authorities)])
    text = f"schema = {string(SCHEMA)}\n"
    text += TEMPLATES[template].format(trust=f"\n{trust}", models="\n".join(map(_model, models)) or NO_MODEL)
    _check(text)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with out.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise Failure(f"{out}: there is a file already", code=ExitCode.USAGE) from None
    command = "verify" if template == "confidential-vm" else "policy check"
    note(f"{out}: template {template}; `attest {command}` says what a host departs in")


def _pin(origin: str) -> str:
    return table("[[pin]]", [("origin", string(origin))])


def _authority(path: Path, hosts: tuple[str, ...]) -> str:
    pem = read_bytes(path, _MAX_PEM).decode("utf-8", "replace").strip()
    entries = [("name", string(path.stem)), ("certificates", f'"""\n{pem}\n"""')]
    if hosts:
        entries.append(("hosts", strings(hosts, sort=False)))
    return table("[[authority]]", entries)


def _model(text: str) -> str:
    name, _, weights = text.rpartition("=")
    if not name:
        raise Failure(
            f"--model {text}: not a name and a digest",
            code=ExitCode.USAGE,
            hint="for example SmolLM2=sha256:…",
        )
    return table("[[model]]", [("name", string(name)), ("weights", string(weights))])


def _check(text: str) -> None:
    try:
        load_policy(text.encode())
    except PolicyError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from None
