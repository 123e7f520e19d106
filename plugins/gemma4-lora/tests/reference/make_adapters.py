"""Adapters that peft itself saved on the tiny reference models, with the logits that they give.

    PYTHONPATH=../../../../tests:../../../../tests/reference python make_adapters.py

Needs torch 2.13.0, transformers 5.23.0 and peft 0.21.2. Every number is drawn by name, so the result is the same on
every machine up to the rounding of the logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from reference_data import DATA, base_name, load, load_multimodal, normal
from torch_tools import array, check_versions, open_model
from transformers import Gemma4ForConditionalGeneration

PEFT = "0.21.2"
HERE = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = {
    "dense": {
        "target_modules": ["q_proj", "k_proj", "mlp.down_proj"], "r": 2, "lora_alpha": 6, "use_rslora": True,
        "rank_pattern": {r"layers\.[01]\.mlp\.down_proj": 3, "layers.2.self_attn.q_proj": 1},
        "alpha_pattern": {"k_proj": 3},
    },
    "moe": {
        "target_modules": ["o_proj", "router.proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        "r": 1, "lora_alpha": 1,
    },
    "e2b-mm": {
        "target_modules": r".*(language_model.*(v_proj|per_layer_projection)|(q_proj|up_proj|ffw_layer_1|linear_end)"
                          r"\.linear|relative_k_proj|embedding_projection)",
        "r": 1, "lora_alpha": 1, "init_lora_weights": "gaussian",
    },
}  # fmt: skip


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Inputs of the model."""
    if name != "e2b-mm":
        return {"input_ids": torch.from_numpy(load(name).ids[:1])}
    case, config = load_multimodal(name).cases["image_and_audio"], load_multimodal(name).config
    ids = np.asarray(case.ids)
    types = np.where(ids == config["image_token_id"], 1, np.where(ids == config["audio_token_id"], 3, 0))
    media = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")
    feed = {"input_ids": ids, "mm_token_type_ids": types, **{key: np.asarray(getattr(case, key)) for key in media}}
    return {key: torch.from_numpy(value) for key, value in feed.items()}


def make(name: str) -> np.ndarray:
    """Save one adapter and return the logits with it ``[1, T, vocab]``."""
    group = "multimodal" if name == "e2b-mm" else "text"
    model = open_model(Gemma4ForConditionalGeneration, DATA / group / name)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**CASES[name])).eval()
    with torch.no_grad():
        for key, tensor in adapted.state_dict().items():
            if ".lora_" in key:
                values = normal(base_name(key.removeprefix("base_model.model.")), 7, tensor.numel())
                tensor.copy_(torch.from_numpy(values.reshape(tensor.shape) * 0.3 / tensor.shape[-1] ** 0.5))
        logits = adapted(**inputs(name)).logits
    adapted.save_pretrained(HERE / name)
    (HERE / name / "README.md").unlink()
    path = HERE / name / "adapter_config.json"
    content = json.loads(path.read_text()) | {"base_model_name_or_path": name}
    # sets have no order of their own
    if isinstance(content["target_modules"], list):
        content["target_modules"].sort()
    path.write_text(json.dumps(content, indent=2) + "\n")
    return array(logits)


def main() -> None:
    """Write all of them."""
    check_versions()
    if peft.__version__ != PEFT:
        sys.exit(f"needs peft {PEFT}, found {peft.__version__}")
    np.savez_compressed(HERE / "logits.npz", **{name: make(name) for name in CASES})


if __name__ == "__main__":
    main()
