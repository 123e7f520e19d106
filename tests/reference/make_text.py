"""Text references: tiny checkpoints saved by transformers, and what it computes with them (see README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_data import DATA, KL_SEEDS, draw, draw_ids, mean_kl, read_header, write_safetensors
from torch_tools import array, check_versions, fill, open_model
from transformers import Gemma4Config, Gemma4ForCausalLM, Gemma4ForConditionalGeneration, Gemma4TextConfig

OUT = DATA / "text"
S, F = "sliding_attention", "full_attention"
SPECIAL = ("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_index", "image_token_id", "audio_token_id",
           "video_token_id")
COMMON = {
    "rms_norm_eps": 1e-6, "max_position_embeddings": 1024, "final_logit_softcapping": 30.0,
    "rope_parameters": {
        S: {"rope_type": "default", "rope_theta": 1e4},
        F: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    },
}
FAMILIES: dict[str, dict[str, Any]] = {
    "e2b": {
        "vocab_size": 384, "vocab_size_per_layer_input": 384, "hidden_size": 64, "intermediate_size": 56,
        "num_hidden_layers": 8, "layer_types": [S, S, S, F] * 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "num_kv_shared_layers": 4,
        "use_double_wide_mlp": True, "hidden_size_per_layer_input": 16,
    },
    "e4b": {
        "vocab_size": 264, "vocab_size_per_layer_input": 264, "hidden_size": 48, "intermediate_size": 36,
        "num_hidden_layers": 9, "layer_types": [S, S, F] * 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "global_head_dim": 24, "sliding_window": 16, "num_kv_shared_layers": 4,
        "use_double_wide_mlp": False, "hidden_size_per_layer_input": 8,
    },
    "moe": {
        "vocab_size": 320, "hidden_size": 40, "intermediate_size": 28, "num_hidden_layers": 6,
        "layer_types": [S, S, F] * 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_global_key_value_heads": 1, "head_dim": 16, "global_head_dim": 40, "sliding_window": 8,
        "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 8,
        "top_k_experts": 3, "moe_intermediate_size": 11, "use_bidirectional_attention": "vision",
    },
    "dense": {
        "vocab_size": 352, "hidden_size": 72, "intermediate_size": 60, "num_hidden_layers": 6,
        "layer_types": [S, S, F] * 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "num_global_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "sliding_window": 12,
        "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision",
    },
}
PROMPT, KL_PROMPTS, KL_LENGTH, NEW = 40, 16, 32, 24


def special_ids(vocab: int) -> dict[str, int]:
    """The seven media ids at the end of the vocabulary."""
    return {name: vocab - len(SPECIAL) + k for k, name in enumerate(SPECIAL)}


def build(name: str, conditional: bool, seed: int) -> Any:
    """A model of family ``name`` with the drawn weights, in bf16."""
    text = Gemma4TextConfig(**COMMON, **FAMILIES[name])
    if not conditional:
        return fill(Gemma4ForCausalLM(text), seed).bfloat16()
    outer = Gemma4Config(text_config=text, vision_config=None, audio_config=None, **special_ids(text.vocab_size))
    return fill(Gemma4ForConditionalGeneration(outer), seed).bfloat16()


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Save as transformers does, with the stop ids of the chat releases."""
    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config.eos_token_id = [1, 106]
    model.save_pretrained(folder, **options)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def flat_config(name: str, folder: Path) -> dict[str, Any]:
    """The folder's config in the released files' spelling: flat keys instead of per_layer_config."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    del text["per_layer_config"]
    text["global_head_dim"] = FAMILIES[name]["global_head_dim"]
    text["num_global_key_value_heads"] = FAMILIES[name].get("num_global_key_value_heads")
    return config


def save_original(name: str, source: Path, folder: Path) -> None:
    """As the original E2B and E4B releases: flat config keys, and K/V tensors stored in the shared layers too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(flat_config(name, source), indent=2) + "\n")
    shapes = {k: tuple(v["shape"]) for k, v in read_header(source / "model.safetensors").items()}
    family = FAMILIES[name]
    for i, kind in enumerate(family["layer_types"]):
        head = family["global_head_dim"] if kind == F else family["head_dim"]
        prefix, rows = f"model.language_model.layers.{i}.self_attn.", family["num_key_value_heads"] * head
        extra = {"k_proj.weight": (rows, family["hidden_size"]), "v_proj.weight": (rows, family["hidden_size"]),
                 "k_norm.weight": (head,)}
        shapes |= {prefix + k: v for k, v in extra.items() if prefix + k not in shapes}
    write_safetensors(folder / "model.safetensors", {k: draw(k, v, 0) for k, v in sorted(shapes.items())})


def greedy(model: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """24 greedy tokens [2, 24], or None where the run would meet a stop or media id, or a near tie."""
    model.generation_config.eos_token_id = None
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
                         output_logits=True, return_dict_in_generate=True)
    new, top = out.sequences[:, ids.shape[1]:], torch.stack(out.logits).topk(2).values
    gap = (top[..., 0] - top[..., 1]).min().item()
    seen, vocab = set(new.flatten().tolist()), model.config.get_text_config().vocab_size
    if new.shape[1] != NEW or seen & {0, 1, 106, *special_ids(vocab).values()} or gap < 5e-3 or len(seen) < 10:
        return None
    print(f"  greedy gap {gap:.4f}, distinct {len(seen)} of {new.numel()}")
    return new


def prompt(name: str, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The first drawn prompt [2, T] with an untroubled greedy continuation, and that continuation."""
    for seed in range(100):
        ids = draw_ids(name, seed, (2, PROMPT), 3, FAMILIES[name]["vocab_size"] - len(SPECIAL))
        if (new := greedy(model, torch.from_numpy(ids))) is not None:
            print(f"  prompt seed {seed}")
            return torch.from_numpy(ids), new
    raise RuntimeError(f"no prompt found for {name}")


def check_variants(name: str, reference: torch.Tensor, ids: torch.Tensor) -> None:
    """Every other folder of this family gives the same logits in transformers itself."""
    flat = OUT / f"{name}-flat"
    shutil.copytree(OUT / name, flat)
    (flat / "config_flat.json").replace(flat / "config.json")
    for folder in sorted(OUT.glob(f"{name}-*")):
        text_only = "text_config" not in json.loads((folder / "config.json").read_text())
        cls = Gemma4ForCausalLM if text_only else Gemma4ForConditionalGeneration
        assert torch.equal(open_model(cls, folder)(ids).logits, reference), folder
        print(f"  {folder.name}: equal")
    shutil.rmtree(flat)


def noise(name: str, folder: Path) -> dict[str, np.ndarray]:
    """How far transformers' bf16 run is from the fp32 truth, for each seed over many prompts (see reference_data)."""
    shape = (len(KL_SEEDS), KL_PROMPTS, KL_LENGTH)
    ids = draw_ids(f"kl:{name}", 0, shape, 3, FAMILIES[name]["vocab_size"] - len(SPECIAL))
    truth, distance, embeds = [], [], None
    for seed in KL_SEEDS:
        rows = torch.from_numpy(ids[seed])
        exact = array(fill(open_model(Gemma4ForConditionalGeneration, folder), seed)(rows).logits)
        half = fill(open_model(Gemma4ForConditionalGeneration, folder, torch.bfloat16), seed)
        out = half(rows, output_hidden_states=True)
        embeds = array(out.hidden_states[0])[0] if embeds is None else embeds
        truth.append(exact[0])
        distance.append([mean_kl(t, x) for t, x in zip(exact, array(out.logits), strict=True)])
        print(f"  seed {seed}: logits std {exact.std():.2f}, KL of the bf16 run {np.mean(distance[-1]):.2e}")
    return {"kl_ids": ids, "kl_truth": np.stack(truth), "kl_reference": np.array(distance), "embeds_bf16": embeds}


def make(name: str) -> None:
    """Everything of one family."""
    print(name)
    folder = save(build(name, True, 0), OUT / name)
    (folder / "config_flat.json").write_text(json.dumps(flat_config(name, folder), indent=2) + "\n")
    if name == "e4b":
        save(build(name, True, 0), OUT / "e4b-sharded", max_shard_size="120KB")
        save(build(name, False, 0), OUT / "e4b-text")
        save(build(name, False, 0), OUT / "e4b-text-sharded", max_shard_size="120KB")
        save_original(name, folder, OUT / "e4b-original")
    model = open_model(Gemma4ForConditionalGeneration, folder)
    ids, new = prompt(name, model)
    out = model(ids, output_hidden_states=True)
    check_variants(name, out.logits, ids)
    hidden = torch.stack(out.hidden_states)[:, 0]
    head = 30 * torch.tanh(hidden[-1] @ model.model.language_model.embed_tokens.weight.T / 30)
    assert torch.allclose(head, out.logits[0], atol=1e-5)
    np.savez_compressed(
        OUT / f"{name}.npz", ids=array(ids), logits=array(out.logits), greedy=array(new),
        hidden=array(hidden).astype(np.float16), **noise(name, folder),
    )


def main() -> None:
    """Write all families."""
    check_versions()
    OUT.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for name in FAMILIES:
            make(name)


if __name__ == "__main__":
    main()
