# SPDX-License-Identifier: Apache-2.0
"""`attest agent swap`: exchange a model of the running agent."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from quotary_cli.agent_client import call, json_option, socket_of, socket_option, state_option
from quotary_cli.agent_tpm import host_failures
from quotary_cli.output import ExitCode, Failure, note, print_json

SCHEMA = "quotary-agent-swap/v1"
_POLL_SECONDS = 0.2
_ENDS = frozenset(("done", "failed"))


@click.command()
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    metavar="[NAME=]PATH",
    help="The new weights, a file or a model folder; NAME=FILE again for each shard.",
)
@click.option("--replaces", metavar="NAME", help="The model to be replaced, where it has another name.")
@click.option("--upstream", metavar="URL", help="Where the engine with the new weights is reached.")
@click.option(
    "--signature", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="OpenSSF signature."
)
@state_option
@socket_option
@json_option
def swap(
    models: tuple[str, ...],
    replaces: str | None,
    upstream: str | None,
    signature: Path | None,
    state: Path | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Exchange a model of the running agent: no request is lost, and every record says which of the two answered.

    The agent measures the new weights, and starts an engine with them if it runs the engine itself; else --upstream
    says where that engine is. New requests go there; when the last answer of the old one has ended, this command
    ends. Only root and the agent's own user may do this. The configuration file is yours to change: the next start
    reads it.
    """
    name, paths = _model_of(models)
    order: dict[str, Any] = {"model": name, "paths": paths}
    for member, value in (("replaces", replaces), ("upstream", upstream)):
        if value is not None:
            order[member] = value
    if signature is not None:
        order["signature"] = str(signature.absolute())
    agent = socket_of(state, path)
    with host_failures():
        from quotary_attest.measure import model_size

        total = model_size([Path(text) for text in paths])
    answer = _follow(agent, call(agent, "POST", "/v1/swap", order), total)
    if answer.get("state") != "done":
        raise Failure(
            f"the swap failed: {answer.get('error', 'no reason given')}",
            code=ExitCode.FAILURE,
            hint=str(answer.get("hint", "")),
        )
    if as_json:
        print_json({"schema": SCHEMA, **answer})
    else:
        click.echo(f"model     {name}\ndigest    {answer.get('digest')}")


def _model_of(models: tuple[str, ...]) -> tuple[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in models:
        name, _, file = text.rpartition("=")
        if not Path(file).exists():
            raise Failure(f"--model {text}: no such file", code=ExitCode.USAGE)
        found.setdefault(name or Path(file).stem, []).append(str(Path(file).absolute()))
    if len(found) > 1:
        raise Failure("one model is exchanged at a time", code=ExitCode.USAGE)
    return next(iter(found.items()))


def _follow(agent: Path, answer: dict[str, Any], total: int) -> dict[str, Any]:
    """Ask until the swap is over, and show how it goes."""
    told = ""
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=total, label="weights", file=sys.stderr, hidden=hidden) as bar:
        while (stage := answer.get("state")) not in _ENDS:
            if not isinstance(stage, str):
                raise Failure(f"what answers at {agent} is not the agent", code=ExitCode.FAILURE)
            if stage == "measuring":
                bar.update(max(0, int(answer.get("bytes", 0)) - bar.pos))
            elif stage != told:
                told = stage
                note(f"{told}: {answer.get('waiting')} answers on their way" if told == "draining" else told)
            time.sleep(_POLL_SECONDS)
            answer = call(agent, "GET", "/v1/swap", None)
    return answer
