"""Speed and memory of a fine-tuning step of torch with transformers, and peft with ``--lora``: the peer of
``training.py``.

    python benchmarks/peer_training.py [--device cpu] [--layers 4] [--lengths 512] [--lora 16]

Needs torch and transformers, and peft for adapters, nothing of this project. A text model of E2B's shape with random
bf16 weights; a step is loss, gradients, clipping of their norm to 1, and AdamW's update. Prints for each length the
seconds of the first step, then tokens per second, the median of the later steps but one, and the peak of memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

E2B = {
    "hidden_size": 1536, "num_hidden_layers": 35, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
    "global_head_dim": 512, "intermediate_size": 6144, "use_double_wide_mlp": True, "num_kv_shared_layers": 20,
    "hidden_size_per_layer_input": 256, "sliding_window": 512, "final_logit_softcapping": 30.0,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def shape(layers: int | None) -> dict:
    """E2B's shape, or a cut of it: see ``cut``."""
    return E2B if layers is None else E2B | cut(layers)


def cut(layers: int) -> dict:
    """An even number of layers: the second half shares keys and values, the last of either half is a full one."""
    half = ["sliding_attention"] * (layers // 2 - 1) + ["full_attention"]
    return {"num_hidden_layers": layers, "layer_types": half * 2, "num_kv_shared_layers": layers // 2}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--layers", type=int, help="an even number, half of them with shared keys and values")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512])
    parser.add_argument("--lora", type=int, metavar="RANK")
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(options.device):
        model = Gemma4ForCausalLM(Gemma4TextConfig(**shape(options.layers)))
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=options.lora, lora_alpha=2 * options.lora, target_modules=TARGETS))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    print(f"{sum(p.numel() for p in trained):,} parameters train, {torch.get_num_threads()} threads", flush=True)
    for length in options.lengths:
        times, cores = [], []
        for _ in range(options.steps):
            ids = torch.randint(10, 200000, (1, length), device=options.device)
            began, used = time.perf_counter(), time.process_time()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            value = loss.item()
            times.append(time.perf_counter() - began)
            cores.append(time.process_time() - used)
        seconds, core_seconds = statistics.median(times[2:]), statistics.median(cores[2:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if options.device != "cpu":
            peak = torch.cuda.max_memory_allocated()
        print(f"torch {length} tokens: first step {times[0]:.2f} s, then {length / seconds:.0f} tok/s "
              f"({seconds * 1e3:.0f} ms, {core_seconds * 1e3:.0f} of the host's processors), {peak / 1e9:.1f} GB at "
              f"most, loss {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
