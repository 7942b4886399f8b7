# SPDX-License-Identifier: Apache-2.0
"""`attest log`: take a host's published log along, look into it, ask it questions."""

from __future__ import annotations

import click

from quotary_cli.lazy import LazyGroup

_COMMANDS = {
    "export": ("quotary_cli.log_export", "export", "Copy a log, and what belongs to it, into one archive."),
    "show": ("quotary_cli.log_show", "show", "List what a log or an archive holds, or print one file of it."),
    "query": (
        "quotary_cli.log_query",
        "query",
        "Ask audited logs what ran when, and which outputs it touches.",
    ),
    "affected": (
        "quotary_cli.log_affected",
        "affected_command",
        "Say which leaves and outputs rest on a key that was lost.",
    ),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def log() -> None:
    """Take a host's published log along, look into it, ask it questions.

    \b
    A log is named by
      https://HOST/quotary/v1/    an agent's proxy, or any web server with the static files
      unix:/path/agent.sock       a running agent on this machine
      FOLDER                      static files
      ARCHIVE                     a file that `attest log export` made
    """
