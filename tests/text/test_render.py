"""Every kernel of tiny models renders for GPUs that are not here: METAL, CUDA and AMD."""

from __future__ import annotations

import multiprocessing
import re
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from rendering import TARGETS, NullPlugin, recording, render_for, source
from tinygrad.uop.ops import Ops, UOp

from gemma4_core import load_pretrained, registry
from gemma4_core.checkpoint.random_weights import write_random_checkpoint
from gemma4_core.model import GemmaModel

SIGNATURES = {
    "METAL": r"\nkernel void \w+\(",
    "CUDA": r'extern "C" __global__ void ',
    "AMD": r'extern "C" __attribute__\(\(global\)\) void ',
}
BF16 = {"METAL": "device bfloat*", "CUDA": "nv_bfloat16*", "AMD": "hip_bfloat16*"}
KERNELS: list[UOp] = []
"""Filled before the worker processes are forked."""


def run_everything(folder: Path, sampled: bool) -> GemmaModel:
    """Prefill, decode, sampling, and each tower once."""
    model = load_pretrained(folder, device="null", tokenizer="raw")
    prompt = [2, 3, 4, 5, 6]
    assert len(list(model.generate(prompt, max_new_tokens=2, temperature=0.0))) <= 2
    if sampled:
        options = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 1}
        list(model.generate(prompt, max_new_tokens=2, **options))
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(1, 36, 2)
    inputs = {
        "vision": {"pixel_values": np.full((1, 36, 768), 0.5, np.float32), "image_position_ids": grid},
        "audio": {"input_features": np.zeros((1, 40, 128), np.float32), "input_features_mask": np.ones((1, 40), bool)},
    }
    for name in inputs.keys() & model.towers.keys():  # other packages may have brought more
        for tokens in model.towers[name].encode(inputs[name]):
            tokens.realize()
    return model


MODELS = {"tiny-e2b": {"audio", "vision"}, "tiny-26b": {"vision"}}
"""Presets, which have per-layer embeddings, experts, shared and tied K/V between them, and their towers."""


@lru_cache
def kernels(preset: str) -> list[UOp]:
    """Kernels of a model and its towers."""
    registry.register(NullPlugin(), "null")
    try:
        with recording() as found, TemporaryDirectory() as place:
            write_random_checkpoint(Path(place) / preset, preset)
            model = run_everything(Path(place) / preset, sampled=preset == "tiny-e2b")
            assert set(model.towers) >= MODELS[preset]
    finally:
        registry.unregister("null")
    assert len(found) > 50
    return found


def check(name: str, sources: list[str]) -> None:
    assert sources and all(re.search(SIGNATURES[name], text) for text in sources)
    assert any(BF16[name] in text for text in sources)


def test_some_kernels_render() -> None:
    found = kernels("tiny-e2b")
    for start, name in enumerate(TARGETS):
        renderer = render_for(name)
        check(name, [source(kernel, renderer) for kernel in found[start :: 4 * len(TARGETS)]])


def render(task: tuple[str, int, int]) -> list[str]:
    """Sources of each ``step``-th kernel, in a process that was forked with ``KERNELS`` filled."""
    name, start, step = task
    renderer = render_for(name)
    return [source(kernel, renderer) for kernel in KERNELS[start::step]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kernel_renders() -> None:
    KERNELS[:] = list({kernel.key: kernel for preset in MODELS for kernel in kernels(preset)}.values())
    assert len(KERNELS) > 100
    # METAL, which allows least, gets all, the others half of them each
    tasks = [(name, start, 4) for start in range(4) for name in ("METAL", ("CUDA", "AMD")[start % 2])]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(render, tasks, chunksize=1).get(timeout=800)
    made = {name: [text for task, texts in zip(tasks, results, strict=True) if task[0] == name for text in texts]
            for name in TARGETS}
    assert len(made["METAL"]) == len(made["CUDA"]) + len(made["AMD"]) == len(KERNELS)
    for name, sources in made.items():
        check(name, sources)
    KERNELS.clear()


@pytest.mark.parametrize("preset", ["tiny-e2b", pytest.param("tiny-26b", marks=pytest.mark.slow)])
def test_kernels_fit_the_backend_with_the_fewest_buffers(preset: str) -> None:
    for kernel in kernels(preset):
        assert sum(u.op is Ops.PARAM for u in kernel.toposort()) <= 31
