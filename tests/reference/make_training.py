"""Training references: loss, gradients, and parameters after one SGD or AdamW step (see README.md)."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_text import FAMILIES, special_ids
from reference_data import DATA, TRAINING, load, load_multimodal, sample_indices
from torch_tools import array, check_versions, open_model
from transformers import Gemma4ForConditionalGeneration

OUT = DATA / "training"
RATE, DECAY = 1e-3, 0.01
MEDIA = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")


def batch(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The fp32 model and its inputs with labels (-100 = ignored)."""
    if name in FAMILIES:
        reference = load(name)
        ids = torch.from_numpy(reference.ids)
        labels = ids.clone()
        labels[0, :11] = -100
        labels[1, 20:23] = -100
        return open_model(Gemma4ForConditionalGeneration, reference.folder), {"input_ids": ids, "labels": labels}
    reference, case = load_multimodal(name), TRAINING[name]
    assert case is not None
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(Gemma4ForConditionalGeneration, reference.folder(Path(folder)))
    inputs = {k: torch.from_numpy(v) for k in MEDIA if (v := getattr(reference.cases[case], k)) is not None}
    ids = torch.from_numpy(reference.cases[case].ids)
    special = special_ids(model.config.text_config.vocab_size)
    types, labels = torch.zeros_like(ids), ids.clone()
    for mark, key in enumerate(("image_token_id", "video_token_id", "audio_token_id"), 1):
        types[ids == special[key]] = mark
    labels[(types > 0) | (ids == 0)] = -100
    return model, {"input_ids": ids, "labels": labels, "mm_token_type_ids": types, **inputs}


def optimizer(model: Any, kind: str) -> torch.optim.Optimizer:
    """Plain SGD, or AdamW that decays matrices only."""
    parameters = list(model.parameters())
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=RATE)
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)


def step(model: Any, inputs: dict[str, torch.Tensor], kind: str) -> tuple[dict[str, np.ndarray], list[float]]:
    """Parameters of a copy after the first step, and the loss before each of three steps and after the last."""
    model = copy.deepcopy(model)
    chosen, losses, first = optimizer(model, kind), [], {}
    for k in range(3):
        chosen.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.item())
        chosen.step()
        if k == 0:
            first = {name: array(p).copy() for name, p in model.named_parameters()}
    with torch.no_grad():
        losses.append(model(**inputs).loss.item())
    return first, losses


def picks(gradient: np.ndarray) -> np.ndarray:
    """Eight stable positions of a flattened tensor and the eight of the largest gradients."""
    spread = sample_indices(gradient.size)
    spread = spread[:: max(1, len(spread) // 8)][:8]
    return np.union1d(spread, np.argsort(-np.abs(gradient.reshape(-1)), kind="stable")[:8]).astype(np.int32)


def make(name: str) -> None:
    """One model's file."""
    model, inputs = batch(name)
    loss = model(**inputs).loss
    loss.backward()
    after = {kind: step(model, inputs, kind) for kind in ("sgd", "adamw")}
    data: dict[str, np.ndarray] = {"labels": array(inputs["labels"])}
    names, norms, counts, columns = [], [], [], []
    for key, p in model.named_parameters():
        gradient = array(p.grad) if p.grad is not None else np.zeros(tuple(p.shape), np.float32)
        index = picks(gradient)
        names.append(key)
        norms.append(float(np.linalg.norm(gradient.astype(np.float64))))
        counts.append(len(index))
        columns.append(np.stack([index.astype(np.float64)] + [
            x.reshape(-1)[index] for x in (gradient, after["sgd"][0][key], after["adamw"][0][key])
        ]))
    rows = np.concatenate(columns, 1)
    data |= {"names": np.array(names), "norms": np.array(norms), "counts": np.array(counts),
             "index": rows[0].astype(np.int32), "gradient": rows[1].astype(np.float32),
             "sgd": rows[2].astype(np.float32), "adamw": rows[3].astype(np.float32),
             "sgd_losses": np.array(after["sgd"][1]), "adamw_losses": np.array(after["adamw"][1])}
    np.savez_compressed(OUT / f"{name}.npz", **data)
    print(name, f"loss {loss.item():.5f}", len(names), "tensors", after["sgd"][1], after["adamw"][1],
          "zero:", [n for n, v in zip(names, norms, strict=True) if v == 0])
    table = model.model.language_model
    if hasattr(table, "embed_tokens_per_layer"):
        print("  gradient norms of row 0:", table.embed_tokens.weight.grad[0].norm().item(),
              table.embed_tokens_per_layer.weight.grad[0].norm().item())


def main() -> None:
    """Write all of them."""
    check_versions()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in TRAINING:
        make(name)


if __name__ == "__main__":
    main()
