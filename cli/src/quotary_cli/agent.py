# SPDX-License-Identifier: Apache-2.0
"""`attest agent`: the signing agent of an inference host."""

from __future__ import annotations

import click

from quotary_cli.lazy import LazyGroup

_COMMANDS = {
    "init": (
        "quotary_cli.agent_init",
        "init",
        "Make a new origin: keys in the TPM, genesis record, empty log.",
    ),
    "enroll": ("quotary_cli.enroll", "enroll", "Get a certificate for the host's attestation key, by files."),
    "run": ("quotary_cli.agent_run", "run", "Run the agent, alone or as a proxy before a model server."),
    "check-config": (
        "quotary_cli.agent_run",
        "check_config",
        "Check a configuration file, every error at once.",
    ),
    "doctor": ("quotary_cli.agent_doctor", "doctor", "Look for what keeps the agent from attesting."),
    "measure": ("quotary_cli.agent_measure", "measure", "Print what the agent would measure for a model."),
    "swap": ("quotary_cli.agent_swap", "swap", "Exchange a model of the running agent; no request is lost."),
    "sign": ("quotary_cli.agent_client", "sign", "Have the running agent attest files."),
    "quote": ("quotary_cli.agent_client", "quote", "Have the running agent quote its platform over a nonce."),
    "status": ("quotary_cli.agent_client", "status", "Show how the running agent is."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def agent() -> None:
    """Run the signing agent of an inference host.

    \b
    A new host:
      attest agent init --state DIR --host NAME
      attest agent enroll …                        (see its help; optional where the origin is pinned)
      attest agent run --state DIR --model FILE --upstream URL --listen HOST:PORT
    """
