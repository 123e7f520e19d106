"""Time of transformers to encode an image and ten seconds of sound, on random weights: the peer of ``towers.py``.

    python benchmarks/peer_towers.py CONFIG --device cpu

Needs torch and transformers, nothing of this project. ``CONFIG`` is the config.json of a folder; its text model, which
the towers do not use, is cut to one layer and a small vocabulary. Medians; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from transformers import Gemma4Config, Gemma4Model


def milliseconds(run, device: str, repeats: int) -> float:
    """The median of some calls after a warm-up call."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with open(options.config, encoding="utf-8") as file:
        raw = json.load(file)
    raw["text_config"] |= {
        "num_hidden_layers": 1, "num_kv_shared_layers": 0, "layer_types": ["full_attention"], "vocab_size": 1024,
        "vocab_size_per_layer_input": 1024, "hidden_size_per_layer_input": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(options.device), torch.inference_mode():
        model = Gemma4Model(Gemma4Config.from_dict(raw)).eval()
        columns, rows = 57, 42
        grid = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
        places = grid.reshape(1, columns * rows, 2)
        pixels = torch.rand(1, columns * rows, 768)
        image = milliseconds(lambda: model.get_image_features(pixels, places), options.device, options.repeats)
        found = {"threads": torch.get_num_threads(), "image, 266 soft tokens": round(image, 1)}
        if raw.get("audio_config"):
            clip, real = torch.randn(1, 999, 128), torch.ones(1, 999, dtype=torch.bool)
            sound = milliseconds(lambda: model.get_audio_features(clip, real), options.device, options.repeats)
            found["10 s of sound"] = round(sound, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
