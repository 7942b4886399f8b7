# SPDX-License-Identifier: Apache-2.0
"""`attest agent doctor`: what on this host keeps the agent from attesting, or soon will."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quotary_cli.agent_client import call
from quotary_cli.agent_roots import endorsing_section
from quotary_cli.agent_run import read_config, tpm_of
from quotary_cli.agent_tpm import EMULATOR, emulator_option, host_failures, read_choice, tpm_option
from quotary_cli.enrolment import FILE, json_option, now, read_passphrase
from quotary_cli.output import ExitCode, Failure, clean, print_json, style

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.doctor import Finding
    from quotary_attest.state import HostIdentity

SCHEMA = "quotary-agent-doctor/v1"
_COLOURS = {"good": "green", "warning": "yellow", "wrong": "red", "not checked": "cyan"}


@click.command()
@click.option("--config", "file", type=FILE, help="The configuration (TOML).")
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), help="The agent's state folder.")
@tpm_option
@emulator_option
@json_option
def doctor(file: Path | None, state: Path | None, tpm: str | None, emulator: bool, as_json: bool) -> None:
    """Look at everything that the agent needs, and change nothing: configuration, state folder, TPM, PCRs,
    certificates, clock, addresses, model servers, confidential-computing hardware. The agent may run meanwhile.

    The exit code is 0 where nothing is wrong (warnings may stand), 4 where something is, 3 where something could not
    be looked at, 2 where the configuration cannot be used.
    """
    overrides: dict[str, object] = {} if state is None else {"state": {"folder": str(state.absolute())}}
    if tpm or emulator:
        overrides["tpm"] = {"emulator": emulator} | ({"tcti": tpm} if tpm else {})
    with host_failures():
        config = read_config(file, overrides)
        findings = list(_examine(config))
    words = [finding.health.value for finding in findings]
    code = (
        ExitCode.FAILURE
        if "wrong" in words
        else ExitCode.NOT_CHECKED
        if "not checked" in words
        else ExitCode.OK
    )
    if as_json:
        _print_json(findings, code)
    else:
        _print(findings)
    raise SystemExit(int(code))


def _examine(config: AgentConfig) -> Iterator[Finding]:
    from quotary_attest.config import missing_files
    from quotary_attest.doctor import (
        Finding,
        Health,
        agent_runs,
        examine_certificates,
        examine_clock,
        examine_doors,
        examine_state,
        wrong,
    )
    from quotary_attest.state import StateError, read_identity

    for problem in missing_files(config):
        yield Finding(problem.path, Health.WRONG, problem.what)
    folder = config.state.folder
    yield from examine_state(folder)
    running = agent_runs(folder)
    if running:
        yield _running(config)
    try:
        identity = read_identity(folder)
    except StateError:
        return
    moment = now()
    if identity.tpm is None:
        config = yield from _without_tpm(config)
    else:
        emulated = config.tpm.emulator or (config.tpm.tcti or read_choice(folder)) == EMULATOR
        if running and emulated:
            yield Finding("tpm", Health.GOOD, "its emulator belongs to the agent that runs")
        else:
            try:
                yield from _tpm(config, identity)
            except Failure as error:
                yield wrong("tpm", error)
        yield examine_certificates(folder, identity, moment)
    yield examine_clock(identity, moment)
    yield from examine_doors(config, running=running)
    yield from _tee(config)


def _tpm(config: AgentConfig, identity: HostIdentity) -> Iterator[Finding]:
    from quotary_attest.doctor import Finding, Health, examine_tpm
    from quotary_attest.doctor_logs import examine_boot_logs
    from quotary_attest.tpm.model import Authorizations

    if config.tpm.endorsement_auth_credential is not None:
        hint = "name the file with endorsement_auth_file in a copy of the configuration"
        text = "what authorises the endorsement hierarchy is for the service alone"
        yield Finding("tpm", Health.NOT_CHECKED, text, hint)
        return
    auths = Authorizations(endorsement=read_passphrase(config.tpm.endorsement_auth_file) or b"")
    with tpm_of(config) as tcti:
        if tcti is None:
            return
        yield from examine_tpm(config.state.folder, identity, tcti, auths)
        yield from examine_boot_logs(identity, tcti, config.boot_logs.settings)
        yield from _endorsement(config, identity, tcti)


def _endorsement(config: AgentConfig, identity: HostIdentity, tcti: str) -> Iterator[Finding]:
    section = endorsing_section(config)
    if section is None:
        return
    from quotary_attest.doctor_azure import examine_azure
    from quotary_attest.tpm.hcl import HclEndorser

    endorser = HclEndorser(section.collateral, now=now)
    yield from examine_azure(identity, tcti, endorser, required=section.required, now=now())


def _without_tpm(config: AgentConfig) -> Generator[Finding, None, AgentConfig]:
    """Say what an origin without a TPM is weaker in, and whether it has what it lives on; return the configuration with
    the roots that `attest agent init` was told."""
    from quotary_attest.doctor import Finding, Health, wrong
    from quotary_cli.agent_tee import WEAKER, for_origin

    hint = (
        "consumers pin the origin, or what is measured at its launch, in their policies (docs/howto/tee.md)"
    )
    yield Finding("tpm", Health.GOOD, WEAKER, hint)
    try:
        config = for_origin(config)
    except Failure as error:
        yield wrong("roots", error)
    return config


def _tee(config: AgentConfig) -> Iterator[Finding]:
    from quotary_attest.doctor_tee import examine_tee, places_of

    devices = {root.kind: root.device for root in config.root}
    yield from examine_tee(devices, places_of(devices))


def _running(config: AgentConfig) -> Finding:
    from quotary_attest.doctor import Finding, Health

    if config.local.socket is not None:
        return Finding("agent", Health.NOT_CHECKED, "an agent runs, and systemd knows where its socket lies")
    try:
        status = call(config.local_path, "GET", "/v1/status", None)
    except Failure as error:
        return Finding("agent", Health.WRONG, str(error), error.hint)
    state, reason = str(status.get("state")), str(status.get("reason", ""))
    if state == "running":
        return Finding("agent", Health.GOOD, f"it runs, with {status.get('size')} leaves in its log")
    return Finding("agent", Health.WRONG, f"{state}: {reason}", str(status.get("hint", "")))


def _print_json(findings: list[Finding], code: ExitCode) -> None:
    listed = [
        {"what": each.what, "health": each.health.value, "text": each.text, "hint": each.hint}
        for each in findings
    ]
    print_json({"schema": SCHEMA, "exit": int(code), "findings": listed})


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        word = finding.health.value
        click.echo(
            f"{style(f'{word:<11}', _COLOURS[word], stream=sys.stdout)}  {finding.what:<{width}}  {clean(finding.text)}"
        )
        if finding.hint:
            click.echo(f"{'':<{width + 15}}{style('hint:', 'cyan', stream=sys.stdout)} {clean(finding.hint)}")
