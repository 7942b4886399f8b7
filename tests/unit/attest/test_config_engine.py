# SPDX-License-Identifier: Apache-2.0
"""What a configuration must have for the agent to start an engine, and that model folders can be named."""

from __future__ import annotations

from pathlib import Path

import pytest
from signed_models import write_files

from quotary_attest.config import ConfigError, load_config, missing_files

GOOD = """
[state]
folder = "{here}/state"
[[model]]
name = "m"
files = ["{here}/model"]
signature = "{here}/signature"
[[part]]
kind = "adapter"
name = "sql"
path = "{here}/lora"
[signers]
keys = ["{here}/key.pem"]
[engine]
binary = "{here}/engine"
arguments = ["--model", "{{model}}", "--port", "{{port}}"]
code = ["{here}/venv"]
start = true
environment = {{ VLLM_USE_V1 = "1" }}
[[proxy]]
upstream = "http://127.0.0.1:8080"
listen = "127.0.0.1:8000"
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    names = ("model/a.safetensors", "signature", "lora/b", "key.pem", "engine", "venv/c")
    write_files(tmp_path, dict.fromkeys(names, b"x"))
    return tmp_path


def test_folders_and_files_that_are_there_are_taken(here: Path) -> None:
    config = load_config(GOOD.format(here=here))
    assert missing_files(config) == ()
    assert config.engine.environment == {"VLLM_USE_V1": "1"}
    assert config.part[0].kind == "adapter"
    for name in ("model/a.safetensors", "lora/b", "venv/c", "signature", "key.pem", "engine"):
        (here / name).unlink()
    for name in ("model", "lora", "venv"):
        (here / name).rmdir()
    assert [problem.path for problem in missing_files(config)] == [
        "model[0].files[0]", "part[0].path", "engine.code[0]", "engine.binary", "model[0].signature", "signers.keys[0]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('binary = "{here}/engine"\n', "", "engine.binary"),
        ('"{{model}}"', '"/elsewhere"', "engine.arguments"),
        ('listen = "127.0.0.1:8000"\n', 'listen = "127.0.0.1:8000"\nmodel = ""\n', "proxy"),
        (
            'listen = "127.0.0.1:8000"\n',
            'listen = "127.0.0.1:8000"\n[[proxy]]\nupstream = "http://127.0.0.1:1"\nlisten = "127.0.0.1:8001"\n',
            "proxy",
        ),
        ('files = ["{here}/model"]', 'files = ["{here}/a", "{here}/b"]', "model"),
        ('kind = "adapter"', 'kind = "weights"', "part[0].kind"),
    ],
)
def test_what_an_engine_that_the_agent_starts_cannot_do_without(
    here: Path, old: str, new: str, path: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as wrong:
        load_config(GOOD.replace(old, new).format(here=here))
    assert path in [problem.path for problem in wrong.value.problems]
