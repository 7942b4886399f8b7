# SPDX-License-Identifier: Apache-2.0
"""The inventory: everything that may serve, measured and listed, and the names that a swap moves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from signed_models import write_files

from quotary_attest.inventory import EngineFile, Inventory, PartFile, measure_inventory
from quotary_attest.measure import ModelFile, join_arguments, measure_files
from quotary_attest.measuring.errors import MeasureError
from quotary_attest.workload import Part, ServedModel, Workload, events_of, measure_model
from quotary_verifier.logs.workload import WorkloadEvent


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_files(
        tmp_path,
        {
            "model/model.safetensors": b"weights",
            "lora/adapter_model.safetensors": b"adapter",
            "template.jinja": b"template",
            "engine": b"binary",
            "venv/lib/code.py": b"code",
            "other/model.safetensors": b"other weights",
        },
    )
    return tmp_path


def inventory_of(files: Path) -> Inventory:
    return measure_inventory(
        [ModelFile("m", (files / "model",))],
        EngineFile(
            "vllm",
            files / "engine",
            ("--api-key", "hunter2"),
            {"B": "2", "A": "hunter2"},
            (files / "venv", files / "lora"),
            "0.32.0",
            "sha256:00",
        ),
        [
            PartFile("adapter", "sql", files / "lora"),
            PartFile("chat_template", "chat", files / "template.jinja"),
        ],
    )


def test_an_epoch_lists_engine_configuration_models_and_what_is_given_beside_them(files: Path) -> None:
    inventory = inventory_of(files)
    events = [event for event, _ in events_of(inventory.workload, bytes, software_tpm=False)]
    named = {(event.type, event.name): event for event in events}
    assert [event.type for event in events] == [
        "agent", "engine", "configuration", "configuration", "model", "adapter", "chat_template",
    ]  # fmt: skip
    engine = named["engine", "vllm"]
    assert engine.digest == hashlib.sha256(b"binary").digest()
    assert (engine.details["version"], engine.details["image"]) == ("0.32.0", "sha256:00")
    assert engine.details["code"] == measure_files([files / "venv"]).digest
    assert engine.details["code_1"] == measure_files([files / "lora"]).digest
    assert named["adapter", "sql"].digest == measure_files([files / "lora"]).digest
    assert named["chat_template", "chat"].digest == hashlib.sha256(b"template").digest()
    assert named["chat_template", "chat"].details == {"files": 1, "bytes": 8}
    for event in events:
        assert WorkloadEvent.decode(event.encode()) == event
        assert b"hunter2" not in event.encode()


def test_the_environment_is_committed_to_in_the_order_of_its_names(files: Path) -> None:
    hidden = [
        secret
        for _, secrets in events_of(inventory_of(files).workload, bytes, software_tpm=False)
        for secret in secrets
    ]
    assert [secret.what for secret in hidden] == ["arguments", "environment"]
    assert hidden[1].content == join_arguments(["A=hunter2", "B=2"])


def test_a_name_means_the_model_that_was_added_last_and_then_the_one_that_is_left(files: Path) -> None:
    inventory = inventory_of(files)
    (old,) = inventory.workload.models
    new, measured = measure_model(ModelFile("m", (files / "other",)))
    first = inventory.files["m"]
    assert inventory.paths["m"] == files / "model"
    inventory.add(new, measured)
    assert inventory.files["m"] is inventory.files[new.key] is not first
    assert inventory.files[old.key] is first
    inventory.forget(new)
    assert inventory.files["m"] is first
    assert inventory.paths["m"] == files / "model"
    inventory.add(new, measured)
    inventory.forget(old)
    assert set(inventory.files) == {"m", new.key}
    inventory.forget(old)
    assert set(inventory.paths) == {"m", new.key}


def test_what_cannot_be_measured_or_named_is_refused(files: Path) -> None:
    with pytest.raises(MeasureError):
        measure_inventory([], EngineFile("x", files / "absent"))
    with pytest.raises(ValueError, match="1 to 500 bytes"):
        measure_inventory([], EngineFile("x", files / "engine", version="1" * 501))
    with pytest.raises(ValueError, match="a part of a model is one of"):
        Part("weights", "x", bytes(32))
    with pytest.raises(ValueError, match="1 to 500 bytes"):
        Part("adapter", "", bytes(32))


def test_of_two_models_of_one_name_the_later_is_meant(files: Path) -> None:
    first, second = ServedModel("m", bytes(32)), ServedModel("m", bytes([1] * 32))
    assert Workload((first, second)).model("m") is second
    assert first.key == "m@" + "00" * 32
