# SPDX-License-Identifier: Apache-2.0
"""`attest tee`: confidential-computing hardware of this machine, and what its makers publish about it."""

from __future__ import annotations

import click

from quotary_cli.lazy import LazyGroup

_COMMANDS = {
    "status": ("quotary_cli.tee_status", "status", "Tell which hardware of this machine can attest."),
    "report": ("quotary_cli.tee_report", "report", "Write evidence of this machine into a file."),
    "fetch-collateral": (
        "quotary_cli.tee_fetch",
        "fetch_collateral",
        "Ask makers for what vouches for evidence, and keep it.",
    ),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def tee() -> None:
    """Confidential-computing hardware: what this machine has, and what vouches for its evidence.

    fetch-collateral is the only command that contacts a maker of hardware.
    """
