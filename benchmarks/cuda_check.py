"""Equality of the CUDA kernels with the portable form, on a GPU, with random weights in official widths.

    python benchmarks/cuda_check.py [--models tiny E2B:10 …] [--positions 0 5 700 1500]

For each model and position: the persistent kernel's logits and the portable form's, both in bf16 and on the same keys
and values, against the portable form in fp32. The kernel passes where it is at most a quarter farther from that truth,
where its greedy choice is its own logits' best, and where another slot than the one it ran in is as it was. Then
prompts through the chunk kernels. Ends with a non-zero status where something does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

import numpy as np
from cuda_models import (
    Filler,
    ModelWithEngine,
    chunk_rows,
    in_fp32,
    one_row,
    random_model,
    use_binaries,
    with_chunk,
)
from tinygrad import Tensor

from gemma4_core.contracts.rows import MediaRows
from gemma4_core.engine.rows import greedy_rows
from gemma4_core.model.slots import SlotStore
from gemma4_core.ops import portable
from gemma4_core.ops.graphs import upload
from gemma4_plugins.devices.cuda.kernels import launch
from gemma4_plugins.devices.cuda.kernels import step as cuda_step

TINY = {
    "model_type": "gemma4_text", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 6, "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128, "global_head_dim": 256, "sliding_window": 48,
    "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": 512, "max_position_embeddings": 4096, "final_logit_softcapping": 30.0,
}  # fmt: skip
UNSHARED = TINY | {
    "num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"], "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "use_double_wide_mlp": False,
    "use_bidirectional_attention": "vision", "num_attention_heads": 8, "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
}  # fmt: skip
OWN = {
    "tiny": TINY, "tiny-odd": UNSHARED | {"intermediate_size": 160}, "tiny-dense": UNSHARED,
    "tiny-experts": UNSHARED | {
        # every expert is chosen: no choice can flip by rounding, everything else is exercised
        "enable_moe_block": True, "num_experts": 12, "top_k_experts": 12, "moe_intermediate_size": 128,
    },
}  # fmt: skip
LIMIT = 1.25


def model_of(name: str) -> ModelWithEngine:
    """One of the tiny models above, a preset's name, or one with a number of layers: ``E2B:10``; ``@int8``
    behind it means int8 matrices."""
    operations = dataclasses.replace(with_chunk(portable(), 128), step=cuda_step.step)
    name, _, int8 = name.partition("@")
    preset, _, layers = name.partition(":")
    return random_model(OWN.get(preset, preset), operations, int(layers) if layers else None, int8 == "int8")


def filled(model: ModelWithEngine, positions: int, source: SlotStore | None = None, count: int = 1) -> SlotStore:
    """So many slots with random keys and values, or each with those of another store's first slot."""
    slots = model.pool.take(model, count, positions)
    fill = Filler()
    for i, held in enumerate(slots.layers):
        if held is None:
            continue
        if source is None:
            fill.fill(held, 0.5)
        else:
            copied = source.layers[i]
            assert copied is not None
            held.assign(copied[:1].expand(held.shape).cast(held.dtype).contiguous()).realize()
    return slots


def step_of(model: ModelWithEngine, slots: SlotStore) -> cuda_step.CudaStep | None:
    """The kernels' step against these slots."""
    found = model.engine.step(slots)
    return found if isinstance(found, cuda_step.CudaStep) else None


def portable_logits(model: ModelWithEngine, slots: SlotStore, token: int, position: int) -> np.ndarray:
    """Logits of the portable form in slot 0."""
    rows = one_row(np.array([token], np.int32), position)
    found = model.engine.portable.run(slots, rows, greedy_rows(1)).logits
    assert found is not None
    logits: np.ndarray = found.numpy()[0]
    return logits


def step_logits(step: cuda_step.CudaStep, ids: Tensor | np.ndarray, position: int, slot: int = 0) -> np.ndarray:
    """Logits of the kernel; NaN where it wrote none."""
    for place in step.places:
        place.with_logits(step.view.vocab)
        assert place.logits is not None
        place.logits.assign(place.logits.full_like(float("nan"))).realize()
    found = step(one_row(ids, position, slot), greedy_rows(1), logits=True).logits
    assert found is not None
    logits: np.ndarray = found.numpy()[0]
    return logits


def check_prompt(name: str, model: ModelWithEngine, truth_model: ModelWithEngine, length: int) -> bool:
    """A prompt through the chunk kernels and the portable graph: keys, values and the last position's logits."""
    ids = (np.arange(length, dtype=np.int32) * 7919 + 3) % model.config.text_config.vocab_size
    found = []
    for served, own in ((model, True), (model, False), (truth_model, False)):  # ours, portable, truth
        slot = int(own)
        slots = filled(served, length + 8, count=1 + slot)
        step = step_of(served, slots) if own else None
        if own and (step is None or not step.chunked):
            print(f"{name}: the chunk kernels do not serve this model here")
            return False
        for start in range(0, length, served.chunk):
            part = ids[start : start + served.chunk]
            wanted = [len(part) - 1] if start + served.chunk >= length else []
            rows, sampling = chunk_rows(part, start, wanted, slot), greedy_rows(1) if wanted else None
            if step is not None:
                done = step(rows, sampling, logits=True)
            else:
                done = served.engine.portable.run(slots, rows, sampling)
        assert done.logits is not None
        held = [slots.layers[i] for i, x in enumerate(served.text.config.layers) if slots.layers[i] is not None]
        newest = [np.arange(max(0, length - (x.window or length)), length) for x in served.text.config.layers]
        taken = [
            t[slot].float().numpy()[:, :, p % t.shape[3]] for t, p in zip(held, newest, strict=False) if t is not None
        ]
        found.append((done.logits.numpy().reshape(-1), taken))
    (got, got_kv), (plain, plain_kv), (truth, truth_kv) = found
    error, usual = relative(got, truth), relative(plain, truth)
    pairs = [(relative(a, c), relative(b, c)) for a, b, c in zip(got_kv, plain_kv, truth_kv, strict=True)]
    worst = max(pairs, key=lambda pair: pair[0] / max(pair[1], 2e-3))
    holds = error <= max(LIMIT * usual, 2e-3) and worst[0] <= max(LIMIT * worst[1], 4e-3)
    print(
        f"{name} prompt of {length}: logits {error:.2e}, portable bf16 {usual:.2e} from fp32; worst layer's keys and "
        f"values {worst[0]:.2e}, portable {worst[1]:.2e} {'good' if holds else 'BAD'}",
        flush=True,
    )
    return bool(holds)


def check_rows(name: str, model: ModelWithEngine, truth_model: ModelWithEngine, length: int) -> bool:
    """Every row's hidden state of a chunk in which some positions are soft tokens, which begins after others: two
    pictures, whose tokens see each other where the model has it so. Its rows choose, too."""
    vocabulary, before = model.config.text_config.vocab_size, 5
    ids = (np.arange(before + length, dtype=np.int32) * 7919 + 3) % vocabulary
    soft = np.full(length, -1, np.int32)
    soft[2:16] = np.arange(14)
    ids[before + 2 : before + 16] = 0
    blocks = np.where(soft >= 0, soft // 10, -1).astype(np.int32) if model.bidirectional else None
    tokens = np.random.default_rng(1).standard_normal((14, model.config.text_config.hidden_size)).astype(np.float32)
    found, chosen = [], 0
    for served, own in ((model, True), (model, False), (truth_model, False)):
        slots = filled(served, before + length + 8)
        step = step_of(served, slots) if own else None
        given = upload(tokens, launch.DEVICE, served.dtype)
        first = chunk_rows(ids[:before], 0)
        rows = chunk_rows(ids[before:], before, range(length), media=MediaRows(given, soft, blocks))
        if step is not None:
            step(first, None)
            result = step(rows, greedy_rows(length), hidden=True)
            chosen = len(result.read())
        else:
            served.engine.portable.run(slots, first, None)
            result = served.engine.portable.run(slots, rows, None)
        assert result.hidden is not None
        found.append(result.hidden.float().numpy()[:length])  # rows of padding may follow
    got, plain, truth = found
    error, usual = relative(got, truth), relative(plain, truth)
    holds = got.shape == truth.shape and chosen == length and error <= max(LIMIT * usual, 2e-3)
    print(f"{name} every row of {length}: hidden states {error:.2e}, portable bf16 {usual:.2e} from fp32 "
          f"{'good' if holds else 'BAD'}", flush=True)
    return bool(holds)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Distance over the size of b's deviation from its mean."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean()))


def same_slot(a: SlotStore, b: SlotStore) -> bool:
    """Whether the first slots of two stores hold the same."""
    pairs = [(x, y) for x, y in zip(a.layers, b.layers, strict=True) if x is not None and y is not None]
    return all(bool((x[0] == y[0]).all().item()) for x, y in pairs)


def check(name: str, positions: list[int], prompts: list[int]) -> bool:
    """One model at all positions, and with prompts of these lengths."""
    began = time.perf_counter()
    model = model_of(name)
    truth_model = in_fp32(model, with_chunk(portable(), 128))
    capacity = max(positions) + 8
    base = filled(model, capacity)
    ours, theirs = filled(model, capacity, base, 2), filled(model, capacity, base)
    truth_slots = filled(truth_model, capacity, base)
    step = step_of(model, ours)
    if step is None:
        print(f"{name}: the kernel does not serve this model here")
        return False
    good = all([check_prompt(name, model, truth_model, n) for n in prompts])
    if prompts:
        good = check_rows(name, model, truth_model, 20) and good
    for position in positions:
        token = (position * 7919 + 11) % model.config.text_config.vocab_size
        given = upload(np.array([token], np.int32), launch.DEVICE)
        got = step_logits(step, given, position, slot=1)
        # the same id from the host, without logits
        [(again, logprob)] = step(one_row(np.array([token], np.int32), position, 1), greedy_rows(1)).read()
        plain = portable_logits(model, theirs, token, position)
        truth = portable_logits(truth_model, truth_slots, token, position)
        error, usual = relative(got, truth), relative(plain, truth)
        best = int(got.argmax())
        expected = float(got.max() - np.log(np.exp(got.astype(np.float64) - got.max()).sum()) - got.max())
        holds = error <= max(LIMIT * usual, 2e-3) and again == best and abs(expected - logprob) < 1e-3
        good = good and bool(holds)
        print(
            f"{name} at {position}: kernel {error:.2e}, portable bf16 {usual:.2e} from fp32; greedy {again} "
            f"(own best {best}, fp32 best {int(truth.argmax())}), log-probability {logprob:.4f} ({expected:.4f}) "
            f"{'good' if holds else 'BAD'}",
            flush=True,
        )
    kept = same_slot(base, ours)
    print(f"{name}: the other slot is {'as it was' if kept else 'CHANGED'}", flush=True)
    good = good and kept
    print(f"{name}: {'good' if good else 'BAD'} in {time.perf_counter() - began:.1f} s", flush=True)
    return good


def main() -> int:
    """Run the requested checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*OWN, "E2B:10", "E4B:12", "26B-A4B:6", "31B:6"])
    parser.add_argument("--positions", nargs="+", type=int, default=[0, 5, 700, 1500])
    parser.add_argument("--prompts", nargs="*", type=int, default=[40, 600])
    parser.add_argument("--binaries", help="folder of kernels compiled beforehand, see cuda_models.use_binaries")
    options = parser.parse_args()
    if options.binaries:
        use_binaries(options.binaries)
    return 0 if all([check(name, options.positions, options.prompts) for name in options.models]) else 1


if __name__ == "__main__":
    sys.exit(main())
