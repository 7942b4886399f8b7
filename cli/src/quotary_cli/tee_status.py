# SPDX-License-Identifier: Apache-2.0
"""`attest tee status`: which roots this machine has, and what keeps the others from being used."""

from __future__ import annotations

import sys

import click

from quotary_cli.agent_tpm import host_failures
from quotary_cli.enrolment import json_option
from quotary_cli.output import ExitCode, clean, print_json, style

SCHEMA = "quotary-tee-status/v1"
_COLOURS = {"usable": "green", "unusable": "yellow", "absent": "cyan"}


@click.command()
@json_option
def status(as_json: bool) -> int:
    """Tell which confidential-computing hardware this machine has and this user can use, and why not the rest.

    Nothing is asked for evidence. The exit code is 0 where at least one is usable, 3 where none is.
    """
    with host_failures():
        from quotary_attest.tee.probe import Presence, probe

        found = probe()
    usable = any(each.presence is Presence.USABLE for each in found)
    code = ExitCode.OK if usable else ExitCode.NOT_CHECKED
    if as_json:
        listed = [
            {"root": each.root, "presence": each.presence.value, "text": each.text, "hint": each.hint}
            for each in found
        ]
        print_json({"schema": SCHEMA, "exit": int(code), "roots": listed})
        return code
    for each in found:
        word = each.presence.value
        click.echo(
            f"{style(f'{word:<8}', _COLOURS[word], stream=sys.stdout)}  {each.root:<9}  {clean(each.text)}"
        )
        if each.hint:
            click.echo(f"{'':21}{style('hint:', 'cyan', stream=sys.stdout)} {clean(each.hint)}")
    return code
