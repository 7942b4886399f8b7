# SPDX-License-Identifier: Apache-2.0
"""From the text of a configuration file, and what the command line says besides, to an `AgentConfig`."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from quotary_attest.config.keys import ConfigError, Problem, Reader
from quotary_attest.config.sections import ENDORSING, AgentConfig, ProxySection

MAX_CONFIG: Final = 1024 * 1024
"""Characters of a configuration file."""


def load_config(text: str, overrides: Mapping[str, Any] | None = None) -> AgentConfig:
    """Read and check a configuration (TOML). `overrides` has the same form, read already: its keys replace the
    file's, arrays of tables as a whole. Nothing is read from disk: see `missing_files`.

    Raises:
        ConfigError: it cannot be used; every reason at once.
    """
    if len(text) > MAX_CONFIG:
        raise ConfigError((Problem("", f"the file is longer than {MAX_CONFIG} characters"),))
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError((Problem("", f"the file is not TOML: {str(error).lower()}"),)) from None
    reader = Reader()
    # a section that has a required key cannot be left out as a whole
    config = reader.section(AgentConfig, _merged({"state": {}, **found}, overrides or {}), "")
    problems = list(reader.problems)
    if config is not None and not reader.incomplete:
        found_later = [problem for check in _CHECKS for problem in check(config)]
        problems += [each for each in found_later if not _follows(each, reader.problems)]
    if config is None or problems:
        raise ConfigError(tuple(problems))
    return config


def _follows(problem: Problem, earlier: Sequence[Problem]) -> bool:
    """Tell whether a problem may be there only because of an earlier one at the same place."""
    return any(each.path.startswith(problem.path) or problem.path.startswith(each.path) for each in earlier)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[name] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def missing_files(config: AgentConfig) -> tuple[Problem, ...]:
    """Return a problem for each file that the configuration names and that this process cannot open."""
    folders: list[tuple[str, Path]] = [
        (f"model[{at}].files[{n}]", path)
        for at, model in enumerate(config.model)
        for n, path in enumerate(model.files)
    ]
    folders += [(f"part[{at}].path", part.path) for at, part in enumerate(config.part)]
    folders += [
        (f"root[{at}].collateral", root.collateral)
        for at, root in enumerate(config.root)
        if root.collateral is not None
    ]
    folders += [(f"engine.code[{n}]", path) for n, path in enumerate(config.engine.code)]
    named: list[tuple[str, Path | None]] = [
        ("engine.binary", config.engine.binary),
        ("tpm.endorsement_auth_file", config.tpm.endorsement_auth_file),
        *((f"root[{at}].platform_keys", root.platform_keys) for at, root in enumerate(config.root)),
        *((f"model[{at}].signature", model.signature) for at, model in enumerate(config.model)),
        *((f"signers.keys[{n}]", path) for n, path in enumerate(config.signers.keys)),
        *((f"signers.authorities[{n}]", path) for n, path in enumerate(config.signers.authorities)),
    ]
    found = [(name, path, _unreadable(path, folder=True)) for name, path in folders]
    found += [(name, path, _unreadable(path)) for name, path in named if path is not None]
    return tuple(Problem(name, f"{path}: {reason}") for name, path, reason in found if reason)


def _unreadable(path: Path, *, folder: bool = False) -> str:
    try:
        if folder and path.is_dir():
            return ""
        if not path.is_file():
            return "no such file"
        with path.open("rb"):
            return ""
    except OSError as error:
        return (error.strerror or "cannot be read").lower()


def claimed_model(config: AgentConfig, proxy: ProxySection) -> str | None:
    """Return the model that the answers of a proxy claim; None where they claim none."""
    if proxy.model is not None:
        return proxy.model or None
    return config.model[0].name if config.model else None


def _repeated(paths_and_values: list[tuple[str, object]], what: str) -> Iterator[Problem]:
    count = Counter(value for _, value in paths_and_values)
    seen = set()
    for path, value in paths_and_values:
        if count[value] > 1 and value in seen:
            yield Problem(path, what)
        seen.add(value)


def _check_models(config: AgentConfig) -> Iterator[Problem]:
    names: list[tuple[str, object]] = [
        (f"model[{at}].name", model.name) for at, model in enumerate(config.model)
    ]
    yield from _repeated(names, "is the name of another model already")


def _check_engine(config: AgentConfig) -> Iterator[Problem]:
    if config.engine.arguments and config.engine.binary is None:
        yield Problem("engine.arguments", "is measured with the binary only", "with engine.binary")
    if config.engine.start:
        yield from _check_start(config)


def _check_start(config: AgentConfig) -> Iterator[Problem]:
    """What an engine that the agent starts must have: a binary, a place for the model's path, and one address."""
    if config.engine.binary is None:
        yield Problem("engine.binary", "is missing where the agent starts the engine", "an absolute path")
    if not any("{model}" in argument for argument in config.engine.arguments):
        yield Problem(
            "engine.arguments",
            "has no place for what was measured",
            "a list with {model} in one of its texts",
        )
    served = {(proxy.upstream, claimed_model(config, proxy)) for proxy in config.proxy}
    if len(served) != 1:
        yield Problem(
            "proxy", "is not of one engine", "one upstream and one model where the agent starts the engine"
        )
    elif next(iter(served))[1] is None:
        yield Problem("proxy", "claims no model", "the model that the engine is started with")
    elif any(len(model.files) > 1 for model in config.model):
        yield Problem(
            "model", "has several files", "one file or one folder where the agent starts the engine"
        )


def _check_proxies(config: AgentConfig) -> Iterator[Problem]:
    names = {model.name for model in config.model}
    for at, proxy in enumerate(config.proxy):
        if proxy.model is None and len(names) > 1:
            yield Problem(
                f"proxy[{at}].model",
                "is missing where there are several models",
                ", ".join([*sorted(names), '""']),
            )
        elif proxy.model and proxy.model not in names:
            yield Problem(f"proxy[{at}].model", "is not measured here", ", ".join([*sorted(names), '""']))


def _doors(config: AgentConfig) -> Iterator[tuple[str, tuple[tuple[str, object], ...], bool]]:
    """Yield every door: its path, its keys of which one may be given, and whether one must be."""
    for at, proxy in enumerate(config.proxy):
        yield f"proxy[{at}]", (("listen", proxy.listen), ("socket", proxy.socket)), True
    local, link, metrics = config.local, config.serving_link, config.metrics
    yield "local", (("path", local.path), ("socket", local.socket)), False
    yield "serving_link", (("path", link.path), ("socket", link.socket)), False
    yield "metrics", (("listen", metrics.listen), ("path", metrics.path), ("socket", metrics.socket)), False


def _check_doors(config: AgentConfig) -> Iterator[Problem]:
    taken: list[tuple[str, object]] = []
    for path, ways, needed in _doors(config):
        given = [(name, value) for name, value in ways if value is not None]
        allowed = "one of " + ", ".join(name for name, _ in ways)
        if len(given) > 1:
            yield Problem(path, f"has {' and '.join(name for name, _ in given)}", allowed)
        elif needed and not given:
            yield Problem(path, "listens nowhere", allowed)
        taken += [(f"{path}.{name}", value) for name, value in given if getattr(value, "port", 1) != 0]
    yield from _repeated(taken, "is taken by another door already")


def _check_local(config: AgentConfig) -> Iterator[Problem]:
    for name, door, listens in (
        ("local", config.local, True),
        ("serving_link", config.serving_link, config.serving_link.path is not None),
    ):
        others = bool(door.allow_uids or door.allow_gids)
        inside = door.path is None or config.state.folder in door.path.parents
        if others and listens and door.socket is None and inside:
            yield Problem(
                f"{name}.path",
                "is where nobody else may enter",
                "a path outside the state folder, where other users are allowed",
            )


def _check_tpm(config: AgentConfig) -> Iterator[Problem]:
    tpm = config.tpm
    if tpm.tcti is not None and tpm.emulator:
        yield Problem("tpm", "has tcti and emulator", "one of them")
    if tpm.endorsement_auth_file is not None and tpm.endorsement_auth_credential is not None:
        yield Problem("tpm", "has endorsement_auth_file and endorsement_auth_credential", "one of them")


def _check_roots(config: AgentConfig) -> Iterator[Problem]:
    for at, root in enumerate(config.root):
        if root.required and root.every != 1:
            yield Problem(f"root[{at}].every", "leaves out commits that need this root", "1 where required")
        if root.privlevel is not None and root.kind != "sev-snp":
            yield Problem(f"root[{at}].privlevel", f"is nothing that {root.kind} has", 'kind = "sev-snp"')
        if root.platform_keys is not None and root.kind != "cca":
            yield Problem(f"root[{at}].platform_keys", f"is nothing that {root.kind} has", 'kind = "cca"')
        if root.collateral is not None and root.kind == "cca":
            yield Problem(f"root[{at}].collateral", "is nothing that cca has", "platform_keys")
        if root.every != 1 and root.kind == ENDORSING:
            yield Problem(
                f"root[{at}].every", "is nothing that azure has: it endorses the key and binds nothing", ""
            )
        if root.device is not None and root.kind in ("nitro-tpm", "nvidia", ENDORSING):
            yield Problem(f"root[{at}].device", f"is nothing that {root.kind} has", "")
    lines: list[tuple[str, object]] = [
        (f"root[{at}].kind", root.kind.removesuffix("-tpm")) for at, root in enumerate(config.root)
    ]
    yield from _repeated(lines, "makes the same line as another root")


_CHECKS: Final[tuple[Callable[[AgentConfig], Iterator[Problem]], ...]] = (
    _check_tpm,
    _check_roots,
    _check_models,
    _check_engine,
    _check_proxies,
    _check_doors,
    _check_local,
)
"""What several keys must fulfil together."""
