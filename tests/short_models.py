"""Models like the reference ones with two text layers and one in each tower, for what depends on no more.

tinygrad's scheduling takes more than twice the time for a graph of twice the size: a captured training step of a short
model is ready in a fifth of the time.
"""

from __future__ import annotations

import atexit
import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reference_data import DATA
from reference_weights import draw, write_safetensors

from gemma4_core import registry
from gemma4_core.config import parse_config, preset_dict


def few_layers_config() -> dict[str, Any]:
    """config.json of ``tiny-e2b`` without towers and with one layer of each kind, the last of which shares K/V."""
    config = preset_dict("tiny-e2b", towers=False)
    config["text_config"] |= {"num_hidden_layers": 3, "num_kv_shared_layers": 1,
                              "layer_types": ["sliding_attention", "full_attention", "full_attention"]}  # fmt: skip
    return config


@lru_cache
def short_folder(name: str) -> Path:
    """A checkpoint in fp32, gone with the process: one sliding and one full layer, no shared K/V."""
    config = json.loads((DATA / ("multimodal" if name.endswith("-mm") else "text") / name / "config.json").read_text())
    text = config["text_config"]
    full = text["layer_types"].index("full_attention")
    own = (text.get("per_layer_config") or {}).get(str(full))
    text |= {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
             "per_layer_config": {"1": own} if own else None}
    for tower in ("vision_config", "audio_config"):
        if config[tower]:
            config[tower]["num_hidden_layers"] = 1
    shapes = registry.expected_tensors(parse_config(config))
    kept = TemporaryDirectory(prefix=f"short-{name}-")
    atexit.register(kept.cleanup)
    folder = Path(kept.name)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: draw(name, shape, 0) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", weights, "F32")
    return folder
