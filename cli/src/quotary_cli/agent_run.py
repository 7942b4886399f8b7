# SPDX-License-Identifier: Apache-2.0
"""`attest agent run`: the agent in the foreground, with its local interface and, if asked for, its proxy."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quotary_cli.agent_tpm import emulator_option, host_failures, reach_tpm, state_option, tpm_option
from quotary_cli.enrolment import FILE, read_passphrase
from quotary_cli.output import ExitCode, Failure, note

if TYPE_CHECKING:
    from quotary_attest.agent import Agent
    from quotary_attest.workload import Workload

SCHEMA = "quotary-agent-run/v1"
_HOUR = 3600.0
_SWITCH_SECONDS = 0.0005
_DAY = 86400


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    state: Path
    models: tuple[str, ...]
    engine: Path | None
    arguments: tuple[str, ...]
    upstream: str | None
    listen: str | None
    socket: Path
    allowed_uids: tuple[int, ...]
    keep_days: int | None
    endorsement_auth_file: Path | None
    resume: bool


@click.command(context_settings={"ignore_unknown_options": False})
@state_option
@tpm_option
@emulator_option
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Weights to measure; NAME=FILE again for each shard.",
)
@click.option(
    "--engine",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The model server's binary, to measure.",
)
@click.option("--upstream", metavar="URL", help="The model server's address, such as http://127.0.0.1:8080.")
@click.option("--listen", metavar="HOST:PORT", help="Where the proxy listens; needs --upstream.")
@click.option(
    "--socket", type=click.Path(path_type=Path), help="The local interface (default: STATE/agent.sock)."
)
@click.option(
    "--allow-uid",
    "uids",
    type=int,
    multiple=True,
    help="User who may use the local interface, besides the agent's own and root; needs --socket.",
)
@click.option(
    "--keep-days",
    type=click.IntRange(1, 36500),
    help="Delete records older than this; the log itself stays (default: keep all).",
)
@click.option(
    "--endorsement-auth-file", type=FILE, help="File whose first line authorises the endorsement hierarchy."
)
@click.option(
    "--resume", is_flag=True, help="Go on although somebody else extended the chain PCR; auditors see a gap."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENT...]")
def run(
    state: Path,
    tpm: str | None,
    emulator: bool,
    models: tuple[str, ...],
    engine: Path | None,
    upstream: str | None,
    listen: str | None,
    socket: Path | None,
    uids: tuple[int, ...],
    keep_days: int | None,
    endorsement_auth_file: Path | None,
    resume: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run the agent until it is told to stop (SIGTERM or Ctrl-C); it finishes what it has acknowledged.
    SIGHUP makes it take up a newly installed certificate.

    The files named with --model and --engine, and the engine's arguments after --, are measured into the workload log
    before anything is served. When all is ready, one JSON object on standard output says where.
    """
    if (upstream is None) != (listen is None):
        raise Failure("--upstream and --listen belong together", code=ExitCode.USAGE)
    if uids and socket is None:
        raise Failure(
            "--allow-uid needs --socket",
            code=ExitCode.USAGE,
            hint="a path outside the state folder, which nobody else may enter",
        )
    if arguments and engine is None:
        raise Failure("engine arguments need --engine", code=ExitCode.USAGE)
    options = Options(
        state,
        models,
        engine,
        arguments,
        upstream,
        listen,
        socket or state / "agent.sock",
        uids,
        keep_days,
        endorsement_auth_file,
        resume,
    )
    _check_doors(upstream, listen)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    with _terminable(), host_failures(), reach_tpm(state, tpm, emulator=emulator) as tcti:
        workload = _measure(options)
        asyncio.run(_serve(options, tcti, workload))


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does while weights are measured, so that no emulator stays behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_doors(upstream: str | None, listen: str | None) -> None:
    """Refuse addresses that cannot be used before anything is measured, counted or committed."""
    if upstream is None or listen is None:
        return
    _address(listen)
    with host_failures():
        from quotary_attest.serving.upstream import Upstream

        try:
            Upstream(upstream)
        except ValueError as error:
            raise Failure(f"--upstream: {str(error).lower()}", code=ExitCode.USAGE) from None


def _check_name(option: str, name: str) -> None:
    from quotary_attest.workload import check_name

    try:
        check_name(name)
    except ValueError as error:
        raise Failure(f"{option}: {error}", code=ExitCode.USAGE) from None


def _measure(options: Options) -> Workload:
    from quotary_attest.measure import ModelFile, measure_file
    from quotary_attest.workload import Engine, Workload, measure_models

    shards: dict[str, list[Path]] = {}
    for text in options.models:
        name, _, file = text.rpartition("=")
        path = Path(file)
        if not path.is_file():
            raise Failure(f"--model {text}: no such file", code=ExitCode.USAGE)
        name = name or path.stem
        _check_name(f"--model {text[:80]}", name)
        shards.setdefault(name, []).append(path)
    files = [ModelFile(name, tuple(paths)) for name, paths in shards.items()]
    total = sum(path.stat().st_size for paths in shards.values() for path in paths)
    engine = None
    if options.engine is not None:
        _check_name("--engine", options.engine.name)
        measured = measure_file(options.engine)
        engine = Engine(options.engine.name, measured.digest, options.arguments)
    if not files:
        return Workload((), engine)
    note(f"measuring {total / 1e6:.0f} MB of weights")
    with click.progressbar(
        length=total, label="weights", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        return Workload(measure_models(files, bar.update), engine)


async def _serve(options: Options, tcti: str, workload: Workload) -> None:
    from quotary_attest.agent import Agent
    from quotary_attest.state import read_identity
    from quotary_attest.tpm.model import Authorizations
    from quotary_attest.tpm.root import TpmOptions, open_root

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    hangup = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    # the thread that speaks to the TPM must not wait 5 ms for the one that encodes records (measured: p99)
    sys.setswitchinterval(_SWITCH_SECONDS)
    auths = Authorizations(endorsement=read_passphrase(options.endorsement_auth_file) or b"")
    root = await open_root(read_identity(options.state).tpm, tcti, TpmOptions(authorizations=auths))
    agent = Agent(options.state, root=root, workload=workload, resume=options.resume)
    async with agent, AsyncExitStack() as stack:
        _settle_memory()
        ready = await _open_doors(options, agent, stack)
        print(json.dumps(ready), flush=True)
        chores = [asyncio.create_task(_reload_on(hangup, agent))]
        if options.keep_days is not None:
            chores.append(asyncio.create_task(_expire(agent, options.keep_days)))
        await stop.wait()
        for chore in chores:
            chore.cancel()
        note("stopping: what was handed in is committed first")


async def _reload_on(hangup: asyncio.Event, agent: Agent) -> None:
    """Take up newly installed certificates whenever SIGHUP comes; what cannot be read leaves the old ones."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await agent.reload_certificates()
            note(f"certificates in use: {agent.status()['certificates']}")
        except Exception as error:
            note(f"the certificates cannot be taken up: {error}")


async def _expire(agent: Agent, days: int) -> None:
    """Delete old records once an hour, slice by slice, so that commits go on between."""
    while True:
        before = (int(time.time()) - days * _DAY) * 1000
        try:
            while await agent.expire(before):
                pass  # a slice at a time; commits go on between two of them
        except Exception as error:
            note(f"old records cannot be deleted now: {error}")
        await asyncio.sleep(_HOUR)


def _settle_memory() -> None:
    """Keep what start-up made out of the collector's way: its pauses stand in the 99th percentile (measured)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _open_doors(options: Options, agent: Agent, stack: AsyncExitStack) -> dict[str, object]:
    from quotary_attest.serving.local import LocalConfig, LocalInterface
    from quotary_attest.serving.peers import Allowed
    from quotary_attest.serving.proxy import Proxy, ProxyConfig

    users = frozenset((0, os.geteuid(), *options.allowed_uids))
    mode = 0o666 if options.allowed_uids else 0o660  # whoever connects is still refused unless allowed
    local = LocalConfig(options.socket, Allowed(users), mode=mode)
    await stack.enter_async_context(LocalInterface(agent, local))
    ready: dict[str, object] = {"schema": SCHEMA, "origin": agent.origin, "socket": str(options.socket)}
    if options.upstream is not None and options.listen is not None:
        model = agent.models[0] if agent.models else None
        engine = None if options.engine is None else options.engine.name
        config = ProxyConfig(options.upstream, model=model, engine=engine)
        proxy = await stack.enter_async_context(Proxy(agent, config))
        host, port = _address(options.listen)
        ready["proxy"] = f"http://{host}:{await proxy.listen(host, port)}"
    return ready


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise Failure(f"--listen {text}: not HOST:PORT", code=ExitCode.USAGE)
    return host.strip("[]"), int(port)
