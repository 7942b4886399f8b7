# SPDX-License-Identifier: Apache-2.0
"""`attest policy`: make, check, compare and sign what you accept."""

from __future__ import annotations

import click

from quotary_cli.lazy import LazyGroup

_COMMANDS = {
    "new": ("quotary_cli.policy_new", "new", "Make a policy from a template."),
    "learn": ("quotary_cli.policy_learn", "learn", "Make a policy of good boots."),
    "check": ("quotary_cli.policy_check", "check", "Tell every departure of a host from a policy."),
    "diff": ("quotary_cli.policy_diff", "diff", "Compare two hosts or two boots, down to the event."),
    "import": ("quotary_cli.policy_import", "imports", "Make lists of what sha256sum or Keylime made."),
    "key": ("quotary_cli.policy_key", "key", "Make a key that signs policies, in a file or in a TPM."),
    "sign": ("quotary_cli.policy_sign", "sign", "Sign a policy, with a version and an end."),
    "verify": ("quotary_cli.policy_sign", "verify", "Verify a signed policy, and get the policy out."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def policy() -> None:
    """Make, check, compare and sign policies: what you accept of a host.

    What a host booted and ran, which models it may serve, and who has to vouch for it.
    """
