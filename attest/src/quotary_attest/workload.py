# SPDX-License-Identifier: Apache-2.0
"""What an epoch of the workload log lists: the agent, the engine, its configuration and every model.

A `Workload` is a full list of everything that may serve. Turning it into events draws the salts of what may hold
secrets; the contents stay with the operator (design section 3, "Workload log").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import quotary_attest
import quotary_verifier
from quotary_attest.measure import (
    KnownDigests,
    Measurement,
    ModelFile,
    Progress,
    join_arguments,
    measure_code,
    measure_files,
    openssf_digest,
)
from quotary_attest.measuring.openssf import ModelSignature, check_signature, signature_of
from quotary_attest.measuring.signers import Signers
from quotary_verifier.logs.workload import (
    SECRET_SALT_BYTES,
    TYPE_AGENT,
    TYPE_CONFIGURATION,
    TYPE_ENGINE,
    TYPE_MODEL,
    WorkloadEvent,
    secret_commitment,
)
from quotary_verifier.wire.records import Link

Random = Callable[[int], bytes]
DetailValue = str | int | bool | bytes

AGENT_NAME: Final = "quotary-attest"
TYPE_ADAPTER: Final = "adapter"
TYPE_TOKENIZER: Final = "tokenizer"
TYPE_CHAT_TEMPLATE: Final = "chat_template"
PART_TYPES: Final = (TYPE_ADAPTER, TYPE_TOKENIZER, TYPE_CHAT_TEMPLATE)
MAX_NAME: Final = 500
"""Bytes of a name: an event has room for 512, and what is said of an engine's arguments adds a word."""


def check_name(name: str) -> None:
    """Refuse a name that would make every record and workload log that carries it unreadable. Raises ValueError."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("a name in the workload log is not utf-8 text") from None
    if not 0 < size <= MAX_NAME:
        raise ValueError(f"a name in the workload log has 1 to {MAX_NAME} bytes")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that may serve: the name requests use, the digest of its weights, how it is tied to the engine."""

    name: str
    weights: bytes
    link: Link = Link.CONFIGURED
    details: Mapping[str, DetailValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for a name that no verifier would read."""
        check_name(self.name)

    @property
    def key(self) -> str:
        """What tells it from other weights of its name, while one is exchanged for the other."""
        return model_key(self.name, self.weights)


def model_key(name: str, weights: bytes) -> str:
    """Return the key of a model of an epoch: name, `@` and the digest of its weights in hexadecimal."""
    return f"{name}@{weights.hex()}"


@dataclass(frozen=True, slots=True)
class Part:
    """What is given to the engine beside a model and changes what it answers: an adapter, a tokenizer or a chat
    template. `type` is one of PART_TYPES, `digest` that of its file or folder, as for a model."""

    type: str
    name: str
    digest: bytes
    details: Mapping[str, DetailValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for another type, or a name that no verifier would read."""
        if self.type not in PART_TYPES:
            raise ValueError(f"a part of a model is one of {', '.join(PART_TYPES)}")
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class Engine:
    """The model server: a name such as `vllm`, the SHA-256 of its executable, and its command line.

    `environment` is the variables that it runs with, as `NAME=value`; `details` may say its `version` and container
    `image`, as the operator states them, and hold the `code` digest of the folders that it runs from.
    """

    name: str
    digest: bytes
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    details: Mapping[str, DetailValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for a name that no verifier would read."""
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that may serve from now on: a full list, not a difference."""

    models: tuple[ServedModel, ...] = ()
    engine: Engine | None = None
    parts: tuple[Part, ...] = ()

    def model(self, name: str) -> ServedModel | None:
        """Return the model that requests call `name`: the last listed, where one is exchanged for another."""
        return next((model for model in reversed(self.models) if model.name == name), None)


@dataclass(frozen=True, slots=True)
class Secret:
    """What stands behind a commitment in an event: `SHA-256(salt ‖ content)`. It never leaves the operator."""

    what: str
    salt: bytes
    content: bytes = field(repr=False)

    @property
    def commitment(self) -> bytes:
        """The 32 bytes that stand in the event."""
        return secret_commitment(self.salt, self.content)


def events_of(
    workload: Workload, random: Random, *, software_tpm: bool
) -> list[tuple[WorkloadEvent, tuple[Secret, ...]]]:
    """Return an epoch's events without its separator, each with the secrets behind its commitments."""
    events: list[tuple[WorkloadEvent, tuple[Secret, ...]]] = [(agent_event(software_tpm=software_tpm), ())]
    if workload.engine is not None:
        engine = workload.engine
        details = dict(engine.details)
        events.append((WorkloadEvent(TYPE_ENGINE, engine.name, engine.digest, details), ()))
        for what, content in (("arguments", engine.arguments), ("environment", engine.environment)):
            if content:
                secret = Secret(what, random(SECRET_SALT_BYTES), join_arguments(content))
                event = WorkloadEvent(TYPE_CONFIGURATION, f"{engine.name} {what}", secret.commitment, {})
                events.append((event, (secret,)))
    for model in workload.models:
        details = dict(model.details)
        events.append((WorkloadEvent(TYPE_MODEL, model.name, model.weights, details), ()))
    for part in workload.parts:
        events.append((WorkloadEvent(part.type, part.name, part.digest, dict(part.details)), ()))
    return events


@cache
def _agent_digest() -> bytes:
    packages = [Path(str(module.__file__)).parent for module in (quotary_attest, quotary_verifier)]
    return measure_code(packages)


def agent_event(*, software_tpm: bool) -> WorkloadEvent:
    """Return the event that names this agent: version, and the digest of its own code as installed.

    On a software TPM it says so, for whoever reads the log and for verifiers, whose policies refuse one by default.
    """
    details: dict[str, DetailValue] = {"version": version(AGENT_NAME)}
    if software_tpm:
        details["tpm"] = "software"
    return WorkloadEvent(TYPE_AGENT, AGENT_NAME, _agent_digest(), details)


def served_model(
    file: ModelFile, measured: Measurement, signature: ModelSignature | None = None
) -> ServedModel:
    """Return a measured model as an epoch lists it, with what its signature says where it has one."""
    details: dict[str, DetailValue] = {"files": len(measured.files), "bytes": measured.size, **measured.parts}
    if measured.folder is not None:
        details["openssf"] = openssf_digest(measured.files)
    if all(each.verity for each in measured.files):
        details["verity"] = True
    if signature is not None:
        details["signature"] = signature.status
        if signature.signer:
            details["signer"] = signature.signer
        if signature.reason:
            details["signature_reason"] = signature.reason
    return ServedModel(file.name, measured.digest, file.link, details)


def measure_model(
    file: ModelFile,
    progress: Progress | None = None,
    *,
    signers: Signers = Signers(),  # noqa: B008 - frozen, and nobody is trusted
    known: KnownDigests | None = None,
) -> tuple[ServedModel, Measurement]:
    """Measure a model's files, and verify its OpenSSF signature if it has one. Minutes for large models.

    Raises:
        MeasureError: a file cannot be measured.
        SignatureError: the signature is false, or does not cover these files.
    """
    measured = measure_files(file.paths, progress, known=known)
    lies = file.signature or signature_of(file.paths)
    signature = None
    if lies is not None:
        signature = check_signature(lies, measured.files, signers, folder=measured.folder is not None)
    return served_model(file, measured, signature), measured


def measure_models(files: Sequence[ModelFile], progress: Progress | None = None) -> tuple[ServedModel, ...]:
    """Measure the weights of all models; minutes for large ones, so run it in a thread.

    Raises:
        MeasureError: a file cannot be measured.
    """
    return tuple(measure_model(file, progress)[0] for file in files)


def measure_part(kind: str, name: str, path: Path, progress: Progress | None = None) -> Part:
    """Measure an adapter, a tokenizer or a chat template that is given to the engine apart from its model.

    Raises:
        MeasureError: a file cannot be measured.
        ValueError: the kind is none of PART_TYPES, or the name cannot be used.
    """
    measured = measure_files([path], progress)
    return Part(kind, name, measured.digest, {"files": len(measured.files), "bytes": measured.size})
