# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009 - `key` and `table` make dataclass fields, not values
"""The configuration of `attest agent run`, section by section (docs/reference/configuration.md).

To add a key, add a field here and a row there; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quotary_attest.bootlogs import FIRMWARE_LOG, IMA_LOG, NO_BOOT_LOGS, BootLogSettings
from quotary_attest.config.keys import key, mapping, table, tables
from quotary_attest.config.rules import (
    ADDRESS,
    CLAIMED,
    ID,
    LABEL,
    MAPPED_PATH,
    NAME,
    PATH,
    REQUEST_PATH,
    SWITCH,
    TEXT,
    URL,
    Address,
    choice,
    integer,
    list_of,
    seconds,
)
from quotary_attest.serving.paths import Api
from quotary_attest.workload import PART_TYPES

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSection:
    """`[state]`: where the origin lies."""

    folder: Path = key(PATH)


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmSection:
    """`[tpm]`: how the TPM is reached; by default as `attest agent init` was told."""

    tcti: str | None = key(TEXT, None)
    emulator: bool = key(SWITCH, False)
    endorsement_auth_file: Path | None = key(PATH, None)
    endorsement_auth_credential: str | None = key(LABEL, None)
    """Name of a systemd credential (LoadCredential) whose first line authorises the endorsement hierarchy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootLogsSection:
    """`[boot_logs]`: the logs of firmware and kernel that commits and attestations name."""

    read: bool = key(SWITCH, True)
    tcg: Path = key(PATH, FIRMWARE_LOG)
    """The firmware's event log."""
    ima: Path = key(PATH, IMA_LOG)
    """The kernel's IMA log. It also says through which values PCR 10 went, whatever `read` says."""
    attestations: Literal["digest", "none"] = key(choice({"digest": "digest", "none": "none"}), "digest")
    """What attestations carry of the logs."""

    @property
    def settings(self) -> BootLogSettings:
        """What an agent takes."""
        if not self.read:
            return NO_BOOT_LOGS
        return BootLogSettings(self.tcg, self.ima, self.attestations == "digest")


ENDORSING = "azure"
"""The root that has no line of its own: it endorses the TPM's key, whose line is the binding."""

ROOT_KINDS = ("sev-snp", "tdx", "nitro", "nitro-tpm", "nvidia", "cca", ENDORSING)
"""Roots that can stand beside the TPM (`quotary_attest.tee.opening.ROOTS`), and the one that endorses its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSection:
    """`[[root]]`: confidential-computing hardware that adds a line of its own to commits, or endorses the TPM's key."""

    kind: str = key(choice({kind: kind for kind in ROOT_KINDS}))
    required: bool = key(SWITCH, False)
    """Whether every commit needs it."""
    every: int = key(integer(1, 1_000_000, "commits"), 1)
    """It binds every Nth commit."""
    seconds: float = key(seconds(0.1, 100), 30.0)
    """How long a commit waits for it."""
    device: Path | None = key(PATH, None)
    """In place of the kernel's: the folder of configfs-tsm, or the device file of an enclave."""
    privlevel: int | None = key(integer(0, 3), None)
    """VMPL to ask as, of "sev-snp"."""
    collateral: Path | None = key(PATH, None)
    """Folder of `attest tee fetch-collateral`, for what does not come with the evidence."""
    platform_keys: Path | None = key(PATH, None)
    """Public keys of the platform in PEM, of "cca": a token that none of them signed binds no commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """`[[model]]`: weights to be measured, under the name that records give them."""

    name: str = key(NAME)
    files: tuple[Path, ...] = key(list_of(PATH, least=1, most=65536))
    """One file, several, or one model folder."""
    signature: Path | None = key(PATH, None)
    """Its OpenSSF signature; by default `model.sig` in the folder, or the file's name with `.sig`, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSection:
    """`[[part]]`: what the engine is given beside a model, to be measured: an adapter, a tokenizer, a chat template."""

    kind: str = key(choice({kind: kind for kind in PART_TYPES}))
    name: str = key(NAME)
    path: Path = key(PATH)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignersSection:
    """`[signers]`: who may sign models. A signature that is there must then be of one of them."""

    keys: tuple[Path, ...] = key(list_of(PATH, most=64), ())
    """Public keys in PEM."""
    authorities: tuple[Path, ...] = key(list_of(PATH, most=64), ())
    """Certificates of authorities in PEM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSection:
    """`[engine]`: the model server, to be measured."""

    name: str | None = key(NAME, None)
    """The name in records and in the workload log; by default that of the binary."""
    binary: Path | None = key(PATH, None)
    arguments: tuple[str, ...] = key(list_of(TEXT, most=4096), ())
    """Its command line; where the agent starts it, `{model}` stands for the model's path and `{port}` for a port."""
    environment: Mapping[str, str] = mapping(LABEL, TEXT)
    """Variables that it runs with."""
    code: tuple[Path, ...] = key(list_of(PATH, most=16), ())
    """Folders that it runs from, such as a Python environment, to be measured."""
    version: str | None = key(NAME, None)
    """As the operator states it."""
    image: str | None = key(NAME, None)
    """Digest of the container image that it runs in, as the operator states it."""
    check: bool = key(SWITCH, True)
    """Whether the process behind each connection is looked at, as far as the host allows."""
    start: bool = key(SWITCH, False)
    """Whether the agent starts the engine itself, from the files that it measured."""
    ready_path: str = key(REQUEST_PATH, "/health")
    """What answers below status 500 once a started engine serves."""
    ready_seconds: float = key(seconds(1, 86400), 600.0)
    """How long a started engine may take to be ready."""
    on_exit: Literal["restart", "stop"] = key(choice({"restart": "restart", "stop": "stop"}), "restart")
    """What happens when a started engine ends: it is started again, or the agent stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySection:
    """`[[proxy]]`: a door in front of one model server."""

    upstream: str = key(URL)
    listen: Address | None = key(ADDRESS, None)
    socket: str | None = key(LABEL, None)
    """Name of a socket that systemd passes on (FileDescriptorName=), in place of `listen`."""
    model: str | None = key(CLAIMED, None)
    """The model that its answers claim; left out: the only one there is."""
    max_request: int = key(integer(1, 1024 * _MIB, "bytes"), 64 * _MIB)
    max_held: int = key(integer(0, 1024 * _MIB, "bytes"), 16 * _MIB)
    max_held_total: int = key(integer(0, 1 << 40, "bytes"), 512 * _MIB)
    max_inband: int = key(integer(0, 16 * _MIB, "bytes"), 256 * 1024)
    fetch_seconds: float = key(seconds(0, 3600), 30.0)
    connect_timeout: float = key(seconds(0.1, 600), 10.0)
    idle_seconds: float = key(seconds(0, 86400), 600.0)
    """How long an engine may be silent within an answer; 0: for ever."""
    when_unavailable: Literal["refuse", "pass"] = key(choice({"refuse": "refuse", "pass": "pass"}), "refuse")
    """What becomes of answers while nothing can be attested: refused, or passed on and marked unattested."""
    paths: Mapping[str, Api] = mapping(MAPPED_PATH, choice(Api))
    """Which API a path speaks, beside the defaults of `quotary_attest.serving.paths`."""
    doors: bool = key(SWITCH, True)
    """Whether the proxy answers the routes that clients of TEE proxies know; else they pass to the engine."""
    workers: int = key(integer(0, 64, "processes"), 0)
    """How many processes relay; 0: the agent's own does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSection:
    """`[local]`: the local interface, on a Unix socket."""

    path: Path | None = key(PATH, None)
    """Where the socket lies; by default `agent.sock` in the state folder."""
    socket: str | None = key(LABEL, None)
    """Name of a socket that systemd passes on, in place of `path`."""
    allow_uids: tuple[int, ...] = key(list_of(ID), ())
    allow_gids: tuple[int, ...] = key(list_of(ID), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLinkSection:
    """`[serving_link]`: the socket for middleware inside engines; none by default."""

    path: Path | None = key(PATH, None)
    socket: str | None = key(LABEL, None)
    """Name of a socket that systemd passes on, in place of `path`."""
    allow_uids: tuple[int, ...] = key(list_of(ID), ())
    """Users whose engines may report outputs, besides the agent's own and root."""
    allow_gids: tuple[int, ...] = key(list_of(ID), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSection:
    """`[metrics]`: figures for Prometheus, health and readiness, on a listener of their own; none by default."""

    listen: Address | None = key(ADDRESS, None)
    path: Path | None = key(PATH, None)
    """A Unix socket, in place of `listen`."""
    socket: str | None = key(LABEL, None)
    """Name of a socket that systemd passes on, in place of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSection:
    """`[retention]`: how long records are kept; the log itself stays."""

    keep_days: int | None = key(integer(1, 36500, "days"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSection:
    """`[stop]`: what happens on SIGTERM."""

    grace_seconds: float = key(seconds(0, 3600), 30.0)
    """How long running answers may take to end before they are ended with an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogSection:
    """`[watchdog]`: when the agent counts as stuck, so that systemd starts it anew."""

    stuck_seconds: float = key(seconds(1, 86400), 300.0)
    """How long one commit or one attempt to reach the TPM may take. The TPM's own deadline is 120 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection:
    """`[log]`: what the process writes to standard error."""

    format: str = key(choice({"text": "text", "json": "json"}), "text")
    level: str = key(choice({word: word for word in ("debug", "info", "warning", "error")}), "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The whole configuration."""

    state: StateSection = table(StateSection)
    tpm: TpmSection = table(TpmSection)
    boot_logs: BootLogsSection = table(BootLogsSection)
    root: tuple[RootSection, ...] = tables(RootSection)
    model: tuple[ModelSection, ...] = tables(ModelSection)
    part: tuple[PartSection, ...] = tables(PartSection)
    signers: SignersSection = table(SignersSection)
    engine: EngineSection = table(EngineSection)
    proxy: tuple[ProxySection, ...] = tables(ProxySection)
    local: LocalSection = table(LocalSection)
    serving_link: ServingLinkSection = table(ServingLinkSection)
    metrics: MetricsSection = table(MetricsSection)
    retention: RetentionSection = table(RetentionSection)
    stop: StopSection = table(StopSection)
    watchdog: WatchdogSection = table(WatchdogSection)
    log: LogSection = table(LogSection)

    @property
    def local_path(self) -> Path:
        """Where the local interface's socket lies, if systemd does not pass one on."""
        return self.local.path or self.state.folder / "agent.sock"
