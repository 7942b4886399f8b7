# SPDX-License-Identifier: Apache-2.0
"""What an agent measured: the list that its epoch puts in force, and the files behind it for the engine's checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quotary_attest.linking.checked import MeasuredFiles
from quotary_attest.measure import (
    KnownDigests,
    MeasuredFile,
    Measurement,
    ModelFile,
    Progress,
    measure_file,
    measure_files,
)
from quotary_attest.measuring.signers import Signers
from quotary_attest.workload import (
    DetailValue,
    Engine,
    Part,
    ServedModel,
    Workload,
    check_name,
    measure_model,
    measure_part,
)


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine to be measured: its name, executable, command line and environment; the folders that it runs from;
    and what the operator states of it (`version`, container `image`)."""

    name: str
    binary: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    code: tuple[Path, ...] = ()
    version: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class PartFile:
    """An adapter, tokenizer or chat template to be measured (`quotary_attest.workload.PART_TYPES`)."""

    kind: str
    name: str
    path: Path


class Inventory:
    """What was measured so far. `files` is by the models' names and keys; a swap adds to it and takes away."""

    def __init__(self, workload: Workload | None = None, engine: MeasuredFile | None = None) -> None:
        self.workload = workload or Workload()
        self.engine = engine
        self.files: dict[str, MeasuredFiles] = {}
        self.paths: dict[str, Path] = {}

    def add(self, model: ServedModel, measured: Measurement) -> None:
        """Take a measured model in; its name means it from now on."""
        files = MeasuredFiles.of(measured)
        for name in (model.name, model.key):
            self.files[name] = files
            self.paths[name] = measured.folder or measured.files[0].path or Path(measured.files[0].name)

    def forget(self, model: ServedModel) -> None:
        """Leave a model out that is not served; if its name meant it, it means what else goes by that name."""
        files = self.files.pop(model.key, None)
        self.paths.pop(model.key, None)
        if files is None or self.files.get(model.name) is not files:
            return
        del self.files[model.name], self.paths[model.name]
        for key in list(self.files):
            if key.rpartition("@")[0] == model.name:
                self.files[model.name], self.paths[model.name] = self.files[key], self.paths[key]


def measure_engine(engine: EngineFile, progress: Progress | None = None) -> tuple[Engine, MeasuredFile]:
    """Measure an engine's executable and the folders that it runs from.

    Raises:
        MeasureError: a file cannot be measured.
        ValueError: name, version or image are too long for the workload log.
    """
    binary = measure_file(engine.binary, progress)
    details: dict[str, DetailValue] = {}
    for name, text in (("version", engine.version), ("image", engine.image)):
        if text:
            check_name(text)
            details[name] = text
    for place, folder in enumerate(engine.code):
        details["code" if place == 0 else f"code_{place}"] = measure_files([folder], progress).digest
    environment = tuple(f"{name}={value}" for name, value in sorted(engine.environment.items()))
    return Engine(engine.name, binary.digest, engine.arguments, environment, details), binary


def measure_inventory(
    models: Sequence[ModelFile],
    engine: EngineFile | None = None,
    parts: Sequence[PartFile] = (),
    *,
    signers: Signers = Signers(),  # noqa: B008 - frozen, and nobody is trusted
    known: KnownDigests | None = None,
    progress: Progress | None = None,
) -> Inventory:
    """Measure everything that may serve; minutes for large weights, so run it in a thread.

    Raises:
        MeasureError: a file cannot be measured.
        SignatureError: a model's signature is false.
        ValueError: a name cannot stand in the workload log.
    """
    found = Inventory()
    measured_engine = None
    if engine is not None:
        measured_engine, found.engine = measure_engine(engine, progress)
    served = []
    for file in models:
        model, measured = measure_model(file, progress, signers=signers, known=known)
        found.add(model, measured)
        served.append(model)
    beside: tuple[Part, ...] = tuple(
        measure_part(part.kind, part.name, part.path, progress) for part in parts
    )
    found.workload = Workload(tuple(served), measured_engine, beside)
    return found
