# SPDX-License-Identifier: Apache-2.0
"""`attest agent run` and `attest agent check-config`: from file and options to a configuration that can be run."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quotary_cli.agent_tpm import emulator_option, host_failures, reach_tpm, tpm_option
from quotary_cli.enrolment import FILE, json_option
from quotary_cli.main import collect_as_usual
from quotary_cli.output import ExitCode, Failure, note, print_json

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig, Problem

_LOG = logging.getLogger("quotary.agent")
CHECK_SCHEMA = "quotary-config-check/v1"
_OPTIONS = {
    "state.folder": "--state",
    "model": "--model",
    "engine.arguments": "the engine's arguments after --",
    "engine.start": "--start-engine",
    "engine": "--engine",
    "proxy[0].upstream": "--upstream",
    "proxy[0].listen": "--listen",
    "local.path": "--socket",
    "local.allow_uids": "--allow-uid",
    "retention.keep_days": "--keep-days",
    "tpm.endorsement_auth_file": "--endorsement-auth-file",
    "boot_logs.tcg": "--firmware-log",
    "boot_logs.ima": "--ima-log",
}
"""What an operator knows a key by who gave it as an option."""

_ELSEWHERE = "a path outside the state folder, which nobody else may enter"


@click.command(context_settings={"ignore_unknown_options": False})
@click.option(
    "--config",
    "file",
    type=FILE,
    help="The configuration (TOML); the options below stand above it.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="The agent's state folder.",
)
@tpm_option
@emulator_option
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]PATH",
    help="Weights to measure, a file or a model folder; NAME=FILE again for each shard.",
)
@click.option(
    "--engine",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The model server's binary, to measure.",
)
@click.option(
    "--start-engine",
    is_flag=True,
    help="Start the engine from the measured files: in its arguments {model} is their path, {port} the upstream's.",
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
    "--workers",
    type=click.IntRange(0, 64),
    help="Processes that relay, beside the agent's own; needs --upstream (default: the agent's own does).",
)
@click.option(
    "--keep-days",
    type=click.IntRange(1, 36500),
    help="Delete records older than this; the log itself stays (default: keep all).",
)
@click.option(
    "--endorsement-auth-file", type=FILE, help="File whose first line authorises the endorsement hierarchy."
)
@click.option("--firmware-log", type=FILE, help="The firmware's event log (default: the kernel's file).")
@click.option("--ima-log", type=FILE, help="The kernel's IMA log (default: the kernel's file).")
@click.option("--no-boot-logs", is_flag=True, help="Name no log of the boot in commits and attestations.")
@click.option("--log", type=click.Choice(["text", "json"]), help="Log lines for people, or JSON objects.")
@click.option(
    "--resume", is_flag=True, help="Go on although somebody else extended the chain PCR; auditors see a gap."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENT...]")
def run(file: Path | None, *, resume: bool, **options: Any) -> None:
    """Run the agent until it is told to stop (SIGTERM or Ctrl-C); it finishes what it has acknowledged.
    SIGHUP makes it take up a newly installed certificate.

    The files named with --model and --engine, and the engine's arguments after --, are measured into the workload log
    before anything is served. When all is ready, one JSON object on standard output says where.
    """
    with host_failures():
        overrides = _overrides(**options)
        config = read_config(file, overrides)
        _check_files(config, overrides)
        from quotary_attest.logs import set_up

        set_up(config.log.format, config.log.level)
        if config.log.format == "text":
            _run(config, resume=resume)
            return
        with _failures_logged():
            _run(config, resume=resume)


@contextmanager
def _failures_logged() -> Iterator[None]:
    """Let what ends the command stand in its log as an object, too."""
    try:
        with host_failures():
            yield
    except Failure as failure:
        _LOG.error("%s", failure, extra={"hint": failure.hint})
        raise SystemExit(int(failure.code)) from None
    except KeyboardInterrupt:
        _LOG.error("interrupted")
        raise SystemExit(int(ExitCode.FAILURE)) from None


def _run(config: AgentConfig, *, resume: bool) -> None:
    from quotary_cli.agent_serve import Service, serve
    from quotary_cli.agent_tee import for_origin
    from quotary_cli.agent_workload import measure

    collect_as_usual()
    config = for_origin(config)
    service = Service.of_environment()
    with _terminable(), tpm_of(config) as tcti:
        service.notifier.status("measuring the model and its engine")
        inventory = measure(config, _LOG.info)
        service.notifier.status("starting")
        asyncio.run(serve(config, tcti, inventory, service, resume=resume))


@click.command("check-config")
@click.argument("file", type=FILE)
@json_option
def check_config(file: Path, as_json: bool) -> None:
    """Check a configuration file and the files that it names; every error at once.

    The exit code is 0 if the agent would take it, else 2.
    """
    with host_failures():
        from quotary_attest.config import ConfigError, load_config, missing_files

        try:
            problems = missing_files(load_config(_text_of(file)))
        except ConfigError as error:
            problems = error.problems
    if as_json:
        listed = [{"path": each.path, "what": each.what, "allowed": each.allowed} for each in problems]
        print_json({"schema": CHECK_SCHEMA, "file": str(file), "problems": listed})
        raise SystemExit(ExitCode.USAGE if problems else ExitCode.OK)
    if problems:
        raise _unusable(problems, {})
    click.echo("the configuration can be used")


def read_config(file: Path | None, overrides: Mapping[str, Any]) -> AgentConfig:
    """Return what a file and options say together. Raises Failure with every error."""
    from quotary_attest.config import ConfigError, load_config

    if file is None and "state" not in overrides:
        raise Failure("which agent: --config or --state is needed", code=ExitCode.USAGE)
    try:
        return load_config("" if file is None else _text_of(file), overrides)
    except ConfigError as error:
        raise _unusable(error.problems, overrides) from None


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not utf-8 text"
        raise Failure(f"{file}: {reason.lower()}", code=ExitCode.USAGE) from None


def _check_files(config: AgentConfig, overrides: Mapping[str, Any]) -> None:
    from quotary_attest.config import missing_files

    if problems := missing_files(config):
        raise _unusable(problems, overrides)


def _unusable(problems: tuple[Problem, ...], overrides: Mapping[str, Any]) -> Failure:
    """Tell every problem but the last on lines of their own; return the failure that carries the last."""
    lines = [_worded(problem, overrides) for problem in problems]
    for line in lines[:-1]:
        note(f"error: {line}")
    hint = f"{len(lines)} errors in the configuration" if len(lines) > 1 else ""
    return Failure(lines[-1], code=ExitCode.USAGE, hint=hint)


def _worded(problem: Problem, overrides: Mapping[str, Any]) -> str:
    for path, option in _OPTIONS.items():
        given = path.split(".", maxsplit=1)[0].split("[", maxsplit=1)[0] in overrides
        if given and problem.path.startswith(path):
            allowed = f"; allowed: {problem.allowed}" if problem.allowed else ""
            return f"{option}: {problem.what}{allowed}"
    return str(problem)


def _overrides(
    state: Path | None,
    tpm: str | None,
    emulator: bool,
    models: tuple[str, ...],
    engine: Path | None,
    start_engine: bool,
    upstream: str | None,
    listen: str | None,
    socket: Path | None,
    uids: tuple[int, ...],
    workers: int | None,
    keep_days: int | None,
    endorsement_auth_file: Path | None,
    firmware_log: Path | None,
    ima_log: Path | None,
    no_boot_logs: bool,
    log: str | None,
    arguments: tuple[str, ...],
) -> dict[str, Any]:
    """Return the options in the form of the configuration file."""
    for wrong, message, hint in (
        ((upstream is None) != (listen is None), "--upstream and --listen belong together", ""),
        (workers is not None and upstream is None, "--workers needs --upstream", ""),
        (bool(uids) and socket is None, "--allow-uid needs --socket", _ELSEWHERE),
        (bool(arguments) and engine is None, "engine arguments need --engine", ""),
        (start_engine and engine is None, "--start-engine needs --engine", ""),
        (bool(tpm) and emulator, "--tpm and --emulator exclude each other", ""),
    ):
        if wrong:
            raise Failure(message, code=ExitCode.USAGE, hint=hint)
    overrides: dict[str, Any] = {}

    def put(section: str, name: str, value: Any) -> None:
        if value not in (None, (), False):
            overrides.setdefault(section, {})[name] = value

    put("state", "folder", _absolute(state))
    if tpm or emulator:
        overrides["tpm"] = {"emulator": emulator} | ({"tcti": tpm} if tpm else {})
    put("tpm", "endorsement_auth_file", _absolute(endorsement_auth_file))
    if models:
        overrides["model"] = _models(models)
    if engine is not None:
        overrides["engine"] = {"binary": _absolute(engine), "name": engine.name, "arguments": arguments}
        put("engine", "start", start_engine)
    if upstream is not None:
        claimed = overrides["model"][0]["name"] if models else None
        door = {"upstream": upstream, "listen": listen} | ({"workers": workers} if workers else {})
        overrides["proxy"] = [door if claimed is None else {**door, "model": claimed}]
    put("local", "path", _absolute(socket))
    put("local", "allow_uids", uids)
    put("retention", "keep_days", keep_days)
    put("boot_logs", "tcg", _absolute(firmware_log))
    put("boot_logs", "ima", _absolute(ima_log))
    if no_boot_logs:
        overrides.setdefault("boot_logs", {})["read"] = False
    put("log", "format", log)
    return overrides


def _models(texts: tuple[str, ...]) -> list[dict[str, Any]]:
    shards: dict[str, list[str | None]] = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        if not Path(file).exists():
            raise Failure(f"--model {text}: no such file", code=ExitCode.USAGE)
        shards.setdefault(name or Path(file).stem, []).append(_absolute(Path(file)))
    return [{"name": name, "files": files} for name, files in shards.items()]


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


@contextmanager
def tpm_of(config: AgentConfig) -> Iterator[str | None]:
    """Yield the TSS string of the TPM that a configuration names, or else `attest agent init` was told; None where the
    origin has none."""
    from quotary_cli.agent_tee import has_tpm

    folder, tpm = config.state.folder, config.tpm
    if not has_tpm(folder):
        yield None
        return
    with reach_tpm(folder, tpm.tcti, emulator=tpm.emulator, tell=_LOG.warning) as tcti:
        yield tcti


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does while weights are measured, so that no emulator stays behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
