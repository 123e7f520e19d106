"""Multimodal references: tiny checkpoints with towers, tower outputs, logits and greedy tokens (see README.md)."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import torch
from make_text import COMMON, F, S, save, special_ids
from reference_data import DATA, MULTIMODAL, base_name, case_inputs, draw_ids
from torch_tools import array, check_versions, fill, open_model
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

OUT = DATA / "multimodal"
NEW = 8

CONFIGS: dict[str, dict[str, Any]] = {
    "e2b-mm": {
        "text": {
            "vocab_size": 300, "vocab_size_per_layer_input": 300, "hidden_size": 40, "intermediate_size": 32,
            "num_hidden_layers": 6, "layer_types": [S, S, F] * 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 16, "global_head_dim": 24, "sliding_window": 8, "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8,
        },
        "vision": {
            "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3,
            "num_key_value_heads": 3, "head_dim": 12, "position_embedding_size": 128, "use_clipped_linears": True,
        },
        "audio": {
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
            "subsampling_conv_channels": [128, 4], "output_proj_dims": 30,
        },
        "mel": 128,
    },
    "dense-mm": {
        "text": {
            "vocab_size": 300, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 4,
            "layer_types": [S, F] * 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_global_key_value_heads": 1, "head_dim": 12, "global_head_dim": 24, "sliding_window": 8,
            "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision",
        },
        "vision": {
            "hidden_size": 40, "intermediate_size": 60, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 20, "position_embedding_size": 128, "standardize": True,
        },
    },
    "odd-e2b": {
        "text": {
            "vocab_size": 203, "vocab_size_per_layer_input": 203, "hidden_size": 28, "intermediate_size": 22,
            "num_hidden_layers": 4, "layer_types": [S, F] * 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "global_head_dim": 16, "sliding_window": 5, "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 6, "rms_norm_eps": 1e-5,
        },
        "vision": {
            "hidden_size": 28, "intermediate_size": 34, "num_hidden_layers": 3, "num_attention_heads": 7,
            "num_key_value_heads": 7, "head_dim": 4, "position_embedding_size": 40, "use_clipped_linears": True,
            "patch_size": 7, "pooling_kernel_size": 2, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 30.0},
        },
        "audio": {
            "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "subsampling_conv_channels": [16, 3],
            "output_proj_dims": 17, "conv_kernel_size": 4, "attention_chunk_size": 5, "attention_context_left": 6,
            "attention_logit_cap": 2.0, "residual_weight": 0.3, "gradient_clipping": 1.5, "rms_norm_eps": 1e-5,
            "use_clipped_linears": False,
        },
        "mel": 16,
    },
    "odd-moe": {
        "text": {
            "vocab_size": 190, "hidden_size": 24, "intermediate_size": 18, "num_hidden_layers": 3,
            "layer_types": [S, S, F], "num_attention_heads": 2, "num_key_value_heads": 2,
            "num_global_key_value_heads": 1, "head_dim": 8, "global_head_dim": 12, "sliding_window": 6,
            "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 5,
            "top_k_experts": 2, "moe_intermediate_size": 9, "use_bidirectional_attention": "vision",
        },
        "vision": {
            "hidden_size": 30, "intermediate_size": 26, "num_hidden_layers": 2, "num_attention_heads": 3,
            "num_key_value_heads": 3, "head_dim": 8, "position_embedding_size": 50, "patch_size": 5,
            "pooling_kernel_size": 4, "use_clipped_linears": True, "standardize": True,
        },
    },
}
# A row is a list of segments: a number of text ids, or a medium that takes the next of its kind.
IMAGE_CASES: dict[str, dict[str, Any]] = {
    "image": {"rows": [[5, "image", 9]], "grids": [(4, 3)]},
    "long_image": {"rows": [[7, "image", 4]], "grids": [(6, 4)]},
    "two_images": {"rows": [[3, "image", 2, "image", 11]], "grids": [(2, 5), (6, 2)]},
    "touching": {"rows": [["image", "image", 3]], "grids": [(3, 3), (3, 3)]},
    "batch": {"rows": [[4, "image", 8], [9, "image", 3]], "grids": [(3, 4), (6, 2)]},
    "video": {"rows": [[4, "frame", 3, "frame", 3, "frame", 6]], "frame_grids": [(3, 2), (3, 2), (3, 2)]},
    "image_and_video": {"rows": [[2, "frame", 2, "frame", 3, "image", 4]], "grids": [(3, 3)],
                        "frame_grids": [(2, 2), (2, 2)]},
}
AUDIO_CASES: dict[str, dict[str, Any]] = {
    "audio": {"rows": [[4, "audio", 5]], "clips": [101]},
    "short_audio": {"rows": [[3, "audio", 2, "audio", 3, "audio", 2]], "clips": [1, 2, 5]},
    "two_clips": {"rows": [[2, "audio", 4, "audio", 6]], "clips": [63, 130]},
    "audio_batch": {"rows": [[3, "audio", 4], [5, "audio", 6]], "clips": [80, 64]},
    "image_and_audio": {"rows": [[3, "image", 3, "audio", 7]], "grids": [(4, 2)], "clips": [50]},
}


def soft_tokens(frames: int) -> int:
    """Soft tokens of so many valid frames."""
    return (frames + 3) // 4


def describe(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """The sizes that ``case_inputs`` needs, grids counted in patches instead of soft tokens."""
    config = CONFIGS[name]
    k = config["vision"].get("pooling_kernel_size", 3)
    facts: dict[str, Any] = {}
    for kind, grids in (("images", "grids"), ("frames", "frame_grids")):
        if grids in case:
            facts[kind] = [[columns * k, rows * k] for columns, rows in case[grids]]
    if "clips" in case:
        facts |= {"clips": case["clips"], "mel": config["mel"]}
    return facts


def prompt(name: str, key: str, case: dict[str, Any], attempt: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mm_token_type_ids ``[rows, T]`` with every medium expanded between its begin and end ids."""
    special = special_ids(CONFIGS[name]["text"]["vocab_size"])
    image, frame = ([columns * rows for columns, rows in case.get(g, [])] for g in ("grids", "frame_grids"))
    counts = {"image": iter(image), "frame": iter(frame), "audio": map(soft_tokens, case.get("clips", []))}
    marks = {"image": ("boi_token_id", "image_token_id", "eoi_token_id", 1),
             "frame": ("boi_token_id", "video_token_id", "eoi_token_id", 2),
             "audio": ("boa_token_id", "audio_token_id", "eoa_token_index", 3)}
    ids, types = [], []
    for r, row in enumerate(case["rows"]):
        text = iter(draw_ids(f"{name}:{key}", 10 * attempt + r, (200,), 3, special["boi_token_id"]).tolist())
        line, kind = [], []
        for part in row:
            if isinstance(part, int):
                line += [next(text) for _ in range(part)]
                kind += [0] * part
                continue
            n, (begin, inside, end, mark) = next(counts[part]), marks[part]
            line += [special[begin], *[special[inside]] * n, special[end]]
            kind += [0, *[mark] * n, 0]
        ids.append(line)
        types.append(kind)
    assert len({len(line) for line in ids}) == 1, (key, [len(line) for line in ids])
    return np.array(ids), np.array(types)


def towers(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Outputs of the towers and of their embedders, padding dropped."""
    out, inner = {}, model.model
    for values, positions in (("pixel_values", "image_position_ids"), ("pixel_values_videos", "video_position_ids")):
        if values in inputs:
            state = inner.vision_tower(inputs[values], inputs[positions]).last_hidden_state
            soft = inner.embed_vision(state)
            both = (("vision_tower", state), ("vision_soft", soft))
            out |= {k: np.concatenate([out[k], array(v)]) if k in out else array(v) for k, v in both}
    if "input_features" in inputs:
        state = inner.audio_tower(inputs["input_features"], inputs["input_features_mask"])
        kept = state.last_hidden_state[state.attention_mask]
        out |= {"audio_tower": array(kept), "audio_soft": array(inner.embed_audio(kept))}
    return out


def run(model: Any, name: str, key: str, case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Everything stored of one case; the text ids are drawn until the greedy run is free of near ties and media ids."""
    arrays = case_inputs(f"{name}:{key}", describe(name, case), model.config.to_dict())
    inputs = {k: torch.from_numpy(v) for k, v in arrays.items() if v is not None}
    if "pixel_values_videos" in inputs:
        inputs["num_frames_per_video"] = torch.tensor([len(inputs["pixel_values_videos"])])
    model.generation_config.eos_token_id = None
    special = set(special_ids(model.config.text_config.vocab_size).values())
    for attempt in range(50):
        ids, types = prompt(name, key, case, attempt)
        feed = {"input_ids": torch.from_numpy(ids), "mm_token_type_ids": torch.from_numpy(types), **inputs}
        out = model.generate(**feed, attention_mask=torch.ones_like(feed["input_ids"]), max_new_tokens=NEW,
                             do_sample=False, output_logits=True, return_dict_in_generate=True)
        new, top = out.sequences[:, ids.shape[1]:], torch.stack(out.logits).topk(2).values
        gap = (top[..., 0] - top[..., 1]).min().item()
        if gap > 5e-3 and not special & set(new.flatten().tolist()):
            break
    else:
        raise RuntimeError(f"no prompt found for {name} {key}")
    logits = model(**feed).logits
    print(f"  {key}: T {ids.shape[1]}, logits std {logits.std():.2f}, gap {gap:.4f}, {new[0].tolist()}")
    return {"ids": ids, "logits": array(logits), "greedy": array(new), **towers(model, inputs)}


def build(name: str) -> Any:
    """The drawn model in bf16."""
    c = CONFIGS[name]
    config = Gemma4Config(
        text_config={**COMMON, **c["text"]}, vision_config=c["vision"], audio_config=c.get("audio"),
        **special_ids(c["text"]["vocab_size"]),
    )
    return fill(Gemma4ForConditionalGeneration(config), 0).bfloat16()


def make(name: str) -> None:
    """One checkpoint and its cases."""
    print(name)
    folder = save(build(name), OUT / name)
    model = open_model(Gemma4ForConditionalGeneration, folder)
    cases = IMAGE_CASES | (AUDIO_CASES if "audio" in CONFIGS[name] else {})
    data = {f"{k}:{field}": v for k, c in cases.items() for field, v in run(model, name, k, c).items()}
    np.savez_compressed(OUT / f"{name}.npz", **data)
    (OUT / f"{name}.json").write_text(json.dumps({k: describe(name, c) for k, c in cases.items()}, indent=1) + "\n")
    if name.startswith("odd"):
        stored = {k: list(v.shape) for k, v in model.state_dict().items() if base_name(k) != "lm_head.weight"}
        (folder / "tensors.json").write_text(json.dumps(stored, indent=0) + "\n")
        (folder / "model.safetensors").unlink()


def main() -> None:
    """Write all four."""
    check_versions()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with torch.no_grad():
        for name in MULTIMODAL:
            make(name)


if __name__ == "__main__":
    main()
