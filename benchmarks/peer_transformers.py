"""Speed of transformers on a checkpoint, as one JSON object: compare.py runs this with a Python that has torch.

    python benchmarks/peer_transformers.py FOLDER --device cpu --prompt-tokens 512 --new-tokens 64 [--compiled]

Needs torch and transformers, nothing of this project. The prompt is timed with the head on its last position only, then
tokens one by one; a first warm-up round is not counted. With ``--compiled`` tokens come from ``generate`` with
a static cache, which transformers compiles on GPUs; two lengths are timed, and the difference counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch
import transformers

SHORT = 8
"""New tokens of the shorter of two generations."""


def synchronize(device: str) -> None:
    """Wait for queued work."""
    if device != "cpu":
        torch.cuda.synchronize()


def step_by_step(model, ids, count: int, device: str) -> tuple[float, float]:
    """Seconds of the prompt, and of ``count`` tokens after the first."""
    synchronize(device)
    began = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    token.item()
    first = time.perf_counter()
    for _ in range(count):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.item()
    return first - began, time.perf_counter() - first


def generated(model, ids, count: int, device: str) -> float:
    """Seconds of a whole generation of ``count`` tokens with a static cache."""
    synchronize(device)
    began = time.perf_counter()
    model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0,
                   cache_implementation="static")  # fmt: skip
    synchronize(device)
    return time.perf_counter() - began


def measure(model, ids, count: int, device: str, compiled: bool) -> tuple[float, float, float]:
    """Seconds of warming up, of the prompt, and of ``count`` tokens."""
    began = time.perf_counter()
    step_by_step(model, ids, 4, device)
    if compiled:
        for length in (SHORT, SHORT, SHORT + count):
            generated(model, ids, length, device)
    warm = time.perf_counter() - began
    prompt, decode = step_by_step(model, ids, 1 if compiled else count, device)
    if compiled:
        decode = generated(model, ids, SHORT + count, device) - generated(model, ids, SHORT, device)
    return warm, prompt, decode


def main() -> None:
    """Load, warm up, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    began = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.bfloat16)
    model = model.to(options.device).eval()
    loaded = time.perf_counter() - began
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (1, options.prompt_tokens), generator=generator).to(options.device)
    with torch.inference_mode():
        warm, prompt, decode = measure(model, ids, options.new_tokens, options.device, options.compiled)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if options.device != "cpu":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({
        "prompt_tokens_per_second": options.prompt_tokens / prompt, "tokens_per_second": options.new_tokens / decode,
        "load_seconds": loaded, "warmup_seconds": warm, "peak_memory_bytes": peak,
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
