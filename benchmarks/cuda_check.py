"""Equality of the CUDA kernels with the portable form, on a GPU, with random weights in official widths.

    python benchmarks/cuda_check.py [--models tiny-e2b E2B:10 26B-A4B:6 31B:6] [--positions 0 5 700 1500]

For each model and position: the persistent step's logits and the portable step's, both in bf16 and on the same cache,
against the portable step in fp32. The kernel passes where it is at most a quarter farther from that truth, and where
its greedy choice is its own logits' best. Ends with a non-zero status where something does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from cuda_models import Filler, in_fp32, random_model, with_chunk
from gemma4_core.model.cache import Storage
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops import portable
from gemma4_plugins.kernels.cuda import launch
from gemma4_plugins.kernels.cuda import step as cuda_step
from tinygrad import Tensor, dtypes

TINY = {
    "model_type": "gemma4_text", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 6, "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128, "global_head_dim": 256, "sliding_window": 48,
    "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": 512, "max_position_embeddings": 4096, "final_logit_softcapping": 30.0,
}  # fmt: skip
LIMIT = 1.25


def model_of(name: str) -> GemmaModel:
    """``tiny``, a preset's name, or one with a number of layers: ``E2B:10``."""
    operations = with_chunk(portable(), 32)
    if name == "tiny":
        return random_model(TINY, operations)
    preset, _, layers = name.partition(":")
    return random_model(preset, operations, int(layers) if layers else None)


def filled(model: GemmaModel, positions: int, source: Storage | None = None) -> Storage:
    """Cache buffers with random keys and values, or with another cache's."""
    storage = model.pool.take(model, 1, positions)
    fill = Filler()
    for i, held in enumerate(storage.layers):
        if held is None:
            continue
        if source is None:
            fill.fill(held, 0.5)
        else:
            copied = source.layers[i]
            assert copied is not None
            held.assign(copied.cast(held.dtype)).realize()
    return storage


def portable_logits(model: GemmaModel, storage: Storage, token: int, position: int) -> np.ndarray:
    """Logits of the portable step on these buffers."""
    cache = model.make_cache()
    cache.storage, cache.length = storage, position
    hidden = model.engine.hidden_step(cache, np.array([[token]], np.int32))
    return model.text.logits(hidden[:, 0], model.operations).numpy()[0]


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Distance over the size of b's deviation from its mean."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean()))


def check(name: str, positions: list[int]) -> bool:
    """One model at all positions."""
    began = time.perf_counter()
    model = model_of(name)
    truth_model = in_fp32(model, with_chunk(portable(), 32))
    capacity = max(positions) + 8
    base = filled(model, capacity)
    ours, theirs, truth_storage = (filled(m, capacity, base) for m in (model, model, truth_model))
    logits_step = cuda_step.decode_step(model.engine, ours, True)
    greedy_step = cuda_step.decode_step(model.engine, ours, False)
    if not isinstance(logits_step, cuda_step.CudaStep) or not isinstance(greedy_step, cuda_step.CudaStep):
        print(f"{name}: the kernel does not serve this model here")
        return False
    good = True
    for position in positions:
        token = (position * 7919 + 11) % model.config.text_config.vocab_size
        given = Tensor(np.array([[token]], np.int32), device=launch.DEVICE).contiguous().realize()
        assert logits_step.logits is not None
        logits_step.logits.assign(Tensor.full((1, model.engine.vocab), float("nan"), dtype=dtypes.float32)).realize()
        logits_step._launch(given, position, logits_step.outputs[0])
        got = logits_step.logits.numpy()[0]
        again, logprob = greedy_step(given, position, None).read()  # type: ignore[attr-defined]
        plain = portable_logits(model, theirs, token, position)
        truth = portable_logits(truth_model, truth_storage, token, position)
        error, usual = relative(got, truth), relative(plain, truth)
        best = int(got.argmax())
        expected = float(got.max() - np.log(np.exp(got.astype(np.float64) - got.max()).sum()) - got.max())
        holds = error <= max(LIMIT * usual, 2e-3) and again == best and abs(expected - logprob) < 1e-3
        good = good and bool(holds)
        print(f"{name} at {position}: kernel {error:.2e}, portable bf16 {usual:.2e} from fp32; greedy {again} "
              f"(own best {best}, fp32 best {int(truth.argmax())}), log-probability {logprob:.4f} ({expected:.4f}) "
              f"{'good' if holds else 'BAD'}", flush=True)
    print(f"{name}: {'good' if good else 'BAD'} in {time.perf_counter() - began:.1f} s", flush=True)
    return good


def main() -> int:
    """Run the checks that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "E2B:10", "E4B:12", "26B-A4B:6", "31B:6"])
    parser.add_argument("--positions", nargs="+", type=int, default=[0, 5, 700, 1500])
    options = parser.parse_args()
    return 0 if all([check(name, options.positions) for name in options.models]) else 1


if __name__ == "__main__":
    sys.exit(main())
