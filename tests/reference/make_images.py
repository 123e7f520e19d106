"""Image preprocessing references: transformers' Pillow-backed image processor on the drawings of ``media`` (README)."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from media import IMAGES, draw_image, picture, save_image
from PIL import Image
from reference_data import DATA, SAMPLES, sample_indices
from torch_tools import check_versions
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)

PILLOW = "13.0.0"
BUDGETS = (70, 140, 280, 560, 1120)
ARRAYS = {
    "array_hwc": lambda: picture(90, 130, 30),
    "array_chw": lambda: np.ascontiguousarray(picture(90, 130, 31).transpose(2, 0, 1)),
    "array_rgba": lambda: picture(90, 130, 32, 4),
    "array_grey": lambda: picture(90, 130, 33, 1)[..., 0],
    "array_grey1": lambda: picture(90, 130, 34, 1),
    "array_float": lambda: (picture(90, 130, 35).astype(np.float64) / 255).astype(np.float32),
    "array_float_255": lambda: picture(90, 130, 36).astype(np.float32),
}


def sha(x: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def run(source: Any, budget: int, height: int, width: int) -> tuple[dict[str, Any], np.ndarray]:
    """What the processor makes of one image: facts for the JSON file and sampled values."""
    out = Gemma4ImageProcessorPil(max_soft_tokens=budget)(source, return_tensors="np")
    positions, tokens = out.image_position_ids[0], int(out.num_soft_tokens_per_image[0])
    valid = int((positions[:, 0] >= 0).sum())
    assert valid == 9 * tokens and (positions[valid:] == -1).all() and not out.pixel_values[0, valid:].any()
    columns, rows = (int(v) + 1 for v in positions[:valid].max(0))
    assert (positions[:valid] == np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)).all()
    values = out.pixel_values[0, :valid]
    whole = np.rint(values.astype(np.float64) * 255)
    exact = bool((values == (whole * (1 / 255)).astype(np.float32)).all())
    facts = {"size": [height, width], "budget": budget, "patches": [rows, columns], "tokens": tokens,
             "rows": out.pixel_values.shape[1], "sha256": sha(values) if exact else None, "integer": exact}
    if exact:
        facts["sha256_uint8"] = sha(whole.astype(np.uint8))
    return facts, values.reshape(-1)[sample_indices(values.size)]


def images() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every drawing as a file and as a Pillow image, arrays, the committed files, and other budgets."""
    facts: dict[str, Any] = {}
    samples: dict[str, np.ndarray] = {}

    def add(key: str, source: Any, height: int, width: int, budget: int = 280) -> None:
        try:
            facts[key], samples[key] = run(source, budget, height, width)
        except (ValueError, TypeError) as error:
            facts[key] = {"size": [height, width], "budget": budget, "error": str(error)[:60]}

    with tempfile.TemporaryDirectory() as folder:
        for name in IMAGES:
            path = save_image(name, Path(folder))
            width, height = Image.open(path).size
            add(f"{name}/path", str(path), height, width)
            add(f"{name}/pil", Image.open(path), height, width)
    for path in sorted((DATA / "media").glob("*")):
        if path.suffix in (".jpg", ".webp", ".png"):
            width, height = Image.open(path).size
            add(f"{path.name}/path", str(path), height, width)
            add(f"{path.name}/pil", Image.open(path), height, width)
    for name, make in ARRAYS.items():
        array = make()
        add(f"{name}/array", array, *(array.shape[1:] if name == "array_chw" else array.shape[:2]))
    for budget in BUDGETS:
        add(f"photo@{budget}/pil", draw_image("photo"), 480, 640, budget)
        add(f"needle@{budget}/pil", draw_image("needle"), 2000, 10, budget)
    return facts, samples


def sizes() -> dict[str, np.ndarray]:
    """Resized height and width of 500 random sizes, all budgets in turn."""
    raw = np.random.PCG64(500).random_raw(1000).astype(np.float64).reshape(500, 2) / 2**64
    size = np.floor(np.exp(raw * np.log(6000))).astype(np.int32)
    size[::5] = np.floor(1 + raw[::5] * 60)
    target = np.zeros_like(size)
    for k, (height, width) in enumerate(size.tolist()):
        target[k] = get_aspect_ratio_preserving_size(height, width, 16, BUDGETS[k % 5] * 9, 3)
    return {"size": size, "budget": np.array(BUDGETS * 100, np.int32), "target": target}


def main() -> None:
    """Write images.json, images.npz, sizes.npz."""
    check_versions()
    warnings.simplefilter("ignore")
    if PIL.__version__ != PILLOW:
        sys.exit(f"needs Pillow {PILLOW}, found {PIL.__version__}")
    facts, samples = images()
    (DATA / "images.json").write_text(json.dumps(facts, indent=1) + "\n")
    np.savez_compressed(DATA / "images.npz", **{k.replace("/", ":"): v for k, v in samples.items()})
    np.savez_compressed(DATA / "sizes.npz", **sizes())
    print(f"{len(facts)} images, samples of {SAMPLES}")
    for key, value in facts.items():
        print(key, value.get("error") or (value["patches"], value["tokens"], value["integer"]))


if __name__ == "__main__":
    main()
