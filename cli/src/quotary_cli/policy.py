# SPDX-License-Identifier: Apache-2.0
"""`attest policy`: make, check, compare and sign what you accept."""

from __future__ import annotations

import click

from quotary_cli.lazy import LazyGroup

_COMMANDS = {
    "key": ("quotary_cli.policy_key", "key", "Make a key that signs policies, in a file or in a TPM."),
    "sign": ("quotary_cli.policy_sign", "sign", "Sign a policy, with a version and an end."),
    "verify": ("quotary_cli.policy_sign", "verify", "Verify a signed policy, and get the policy out."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def policy() -> None:
    """Make, check, compare and sign policies: what you accept of a host.

    docs/howto/policies.md goes through it from the first boot to a signed policy.
    """
