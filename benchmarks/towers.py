"""Time to encode an image or a clip of sound, on random weights of official shapes.

    python benchmarks/towers.py --device cuda                       # E2B and 31B images, ten seconds of sound
    python benchmarks/towers.py --device cuda --check               # the kernels against numpy in double precision
    python benchmarks/towers.py --device cpu --layers 1 --sizes E2B

A time is that of one medium never seen before, from features in host memory to soft tokens on the device, after the
graph was captured: the median of several. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, dtypes

from gemma4_core.config import parse_config, preset_dict
from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import activate
from gemma4_core.ops import portable
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.towers import tower_operations
from gemma4_core.weights import DenseMatrix

random = np.random.default_rng(0)
Features = Callable[[], Mapping[str, Any]]


class RandomWeights:
    """A weight source of noise; clip bounds are wide."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        shape = self.shapes[name]
        if not shape:
            values = np.array(-40.0 if name.endswith("_min") else 40.0, np.float32)
        else:
            values = random.standard_normal(shape, np.float32) * shape[-1] ** -0.5 if len(shape) > 1 else np.ones(shape)
        return upload(np.asarray(values, np.float32), device, dtype)


def image(columns: int, rows: int) -> Features:
    """An image of this many patches, new at every call."""
    count = columns * rows
    positions = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(1, count, 2)
    return lambda: {"pixel_values": random.random((1, count, 768), np.float32), "image_position_ids": positions}


def clip(frames: int) -> Features:
    """Sound of this many frames, new at every call."""
    return lambda: {"input_features": random.standard_normal((1, frames, 128), np.float32),
                    "input_features_mask": np.ones((1, frames), np.bool_)}


def tower(size: str, kind: str, device: str, operations: Any, layers: int | None) -> Any:
    """A tower of a preset with random weights, of ``layers`` layers where given."""
    from gemma4_plugins.modalities.audio.tensors import audio_tensors
    from gemma4_plugins.modalities.audio.tower import AudioTower
    from gemma4_plugins.modalities.vision.tensors import vision_tensors
    from gemma4_plugins.modalities.vision.tower import VisionTower

    data = preset_dict(size)
    if layers:
        data[f"{kind}_config"]["num_hidden_layers"] = layers
    config = parse_config(data)
    model: Any = SimpleNamespace(config=config, device=device, dtype=dtypes.bfloat16, operations=operations)
    if kind == "vision":
        return VisionTower(model, RandomWeights(vision_tensors(config)))  # type: ignore[arg-type]
    return AudioTower(model, RandomWeights(audio_tensors(config)))  # type: ignore[arg-type]


def milliseconds(encoder: Any, features: Features, repeats: int) -> tuple[float, float]:
    """Time of the first call, and the median of the later ones except the second."""
    times = []
    for _ in range(repeats + 2):
        made = features()
        began = time.perf_counter()
        encoder.encode(made, capture=True)[0].realize()
        Device[encoder.device].synchronize()
        times.append((time.perf_counter() - began) * 1e3)
    return times[0], statistics.median(times[2:])


def check(device: str, operations: Any) -> float:
    """The largest error of the device's kernels, in units of the result's spread; bf16 alone makes 0.02."""
    products = tower_operations(operations, device)
    errors: list[float] = []
    draw = lambda *shape: upload(random.standard_normal(shape, np.float32), device, dtypes.bfloat16)  # noqa: E731
    wide = lambda tensor: tensor.float().numpy().astype(np.float64)  # noqa: E731

    def compare(what: str, found: Tensor, truth: np.ndarray) -> None:
        errors.append(float(np.abs(wide(found) - truth).max() / truth.std()))
        print(f"{what}: {errors[-1]:.4f}")

    print("form:", products.name)
    for rows, width, inner in ((2560, 768, 768), (2560, 4304, 1152), (640, 1152, 4304), (130, 70, 40), (17, 1536, 768)):
        x, w = draw(rows, inner), draw(width, inner)
        truth = wide(x) @ wide(w).T
        compare(f"linear {rows} x {inner} x {width}", products.linear(x, DenseMatrix(w)), truth)
    for count, heads, groups, size, real in ((256, 3, 3, 64, 256), (2560, 16, 16, 72, 2394), (128, 4, 2, 24, 70)):
        q, k, v = draw(count, heads, size), draw(count, groups, size), draw(count, groups, size)
        seen = upload(np.arange(count) < real, device)
        keys, values = (np.repeat(wide(t)[:real], heads // groups, 1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", wide(q), keys)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        truth = np.einsum("hqk,khd->qhd", shares / shares.sum(-1, keepdims=True), values).reshape(count, -1)
        compare(f"attention {count} x {heads} x {size}", products.attention(q, k, v, seen), truth)
    x, w = draw(2560, 768), draw(768)
    truth = wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + 1e-6) * wide(w)
    compare("norm", products.norm(x, w, 1e-6), truth)
    for heads, size in ((12, 64), (16, 72)):
        x, w, angles = draw(2560, heads * size), draw(size), random.uniform(0, 60, (2560, 2, size // 4))
        turn = tuple(upload(f(angles).astype(np.float32), device) for f in (np.cos, np.sin))
        split = wide(x).reshape(2560, heads, size)
        normed = split / np.sqrt((split**2).mean(-1, keepdims=True) + 1e-6) * wide(w)
        turned = normed.reshape(2560, heads, 2, 2, size // 4)
        cos, sin, (first, second) = np.cos(angles)[:, None], np.sin(angles)[:, None], np.moveaxis(turned, 3, 0)
        truth = np.stack([first * cos - second * sin, second * cos + first * sin], 3).reshape(2560, heads, size)
        compare(f"heads {heads} x {size}", products.heads(x, size, w, 1e-6, None, turn), truth)
    gate, up = draw(2560, 3072), draw(2560, 3072)
    g = wide(gate)
    truth = 0.5 * g * (1 + np.tanh(0.7978845608028654 * (g + 0.044715 * g**3))) * wide(up)
    compare("gated", products.gated(gate, up, None, None, None), truth)
    return max(errors)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", nargs="+", default=["E2B", "31B"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    backend, device = activate(options.device, DeviceSettings())
    operations = backend.operations() if backend.operations else portable()
    result: dict[str, Any] = {"device": device}
    if options.check:
        result["worst_error"] = check(device, operations)
        print(json.dumps(result))
        return
    jobs = [(size, "vision", "image, 266 soft tokens", image(57, 42)) for size in options.sizes]
    jobs += [("E2B", "vision", "video frame, 63 soft tokens", image(27, 21))]
    jobs += [("E2B", "audio", "10 s of sound", clip(999))]
    for size, kind, what, features in jobs:
        first, median = milliseconds(tower(size, kind, device, operations, options.layers), features, options.repeats)
        print(f"{size} {what}: {median:.1f} ms (first {first / 1e3:.1f} s)", flush=True)
        result[f"{size} {what}"] = round(median, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
