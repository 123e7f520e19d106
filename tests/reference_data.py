"""Reference outputs of transformers for tests (numpy only).

``load("e2b")`` gives token ids, fp32 logits, greedy tokens and the checkpoint folder that made them;
``load_images``, ``load_sizes``, ``load_features``, ``load_multimodal`` and ``load_training`` give the others.
``tests/reference/README.md`` describes every file and how it was made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference_weights import (
    F32,
    I64,
    base_name,
    draw,
    draw_ids,
    normal,
    raw_words,
    read_header,
    round_bf16,
    tensor_shapes,
    write_safetensors,
    write_seed,
)

__all__ = ["DATA", "KL_SEEDS", "MULTIMODAL", "TEXT_FAMILIES", "TRAINING", "base_name", "case_inputs", "draw",
           "draw_ids", "frame_indices", "load", "load_features", "load_images", "load_multimodal", "load_sizes",
           "load_training", "mean_kl", "read_header", "relative_error", "round_bf16", "sample_indices",
           "tensor_shapes", "write_safetensors", "write_seed"]

DATA = Path(__file__).parent / "reference" / "data"
TEXT_FAMILIES = ("e2b", "e4b", "moe", "dense")
KL_SEEDS = (0, 1, 2, 3)


def mean_kl(truth: NDArray[Any], logits: NDArray[Any]) -> float:
    """Mean over positions of KL(softmax(truth) || softmax(logits)), in nats; both ``[..., vocab]``."""
    t, x = (_log_softmax(np.asarray(a, np.float64)) for a in (truth, logits))
    return float((np.exp(t) * (t - x)).sum(-1).mean())


def relative_error(logits: NDArray[Any], truth: NDArray[Any]) -> float:
    """Largest absolute difference over the standard deviation of ``truth``."""
    x, t = np.asarray(logits, np.float64), np.asarray(truth, np.float64)
    return float(np.abs(x - t).max() / t.std())


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@dataclass(frozen=True)
class TextReference:
    """What transformers computes for one tiny checkpoint, in fp32 on the bf16-rounded weights of ``folder``."""

    name: str
    folder: Path
    """Saved by transformers (``Gemma4ForConditionalGeneration``, towers null, one file)."""
    ids: I64
    """Prompt ``[2, T]``, T more than twice the window."""
    logits: F32
    """``[2, T, vocab]``: the full forward pass."""
    greedy: I64
    """``[2, 24]``: greedy continuation of each row, no stop id applied."""
    hidden: NDArray[np.float16]
    """``[layers + 1, T, hidden]`` of row 0: input embeddings, then every layer's output; the last one is after the
    final norm (as ``output_hidden_states`` of transformers).  Half precision: for finding where a fault begins."""
    kl_ids: I64
    """``[4, 16, T2]``: sixteen prompts for each seed of ``KL_SEEDS``; experts flip, so fewer make an unstable mean."""
    kl_truth: F32
    """``[4, T2, vocab]``: fp32 logits of seed s's weights (``write_seed``) for the first prompt, ``kl_ids[s, 0]``.
    Our own fp32 run, checked against these, is the truth for the other fifteen."""
    kl_reference: NDArray[np.float64]
    """``[4, 16]``: mean KL of transformers' own bf16 run (eager attention and experts) for each seed and prompt."""
    embeds_bf16: F32
    """``[T2, hidden]``: scaled embeddings of ``kl_ids[0, 0]`` in the bf16 run: the rounded scale shows."""

    @property
    def config(self) -> dict[str, Any]:
        """The folder's config.json."""
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return config

    def variant(self, suffix: str) -> Path:
        """Another committed folder with the same weights, such as ``text`` or ``sharded`` (README lists them)."""
        return self.folder.parent / f"{self.name}-{suffix}"


@lru_cache
def load(name: str) -> TextReference:
    """The text reference ``e2b``, ``e4b``, ``moe`` or ``dense``."""
    with np.load(DATA / "text" / f"{name}.npz") as z:
        return TextReference(name, DATA / "text" / name, **{k: z[k] for k in z.files})


SAMPLES = 600


def sample_indices(size: int) -> I64:
    """Where a long array is sampled: at most ``SAMPLES`` stable positions in ``[0, size)``, the last one included."""
    if size <= SAMPLES:
        return np.arange(size)
    picks = (raw_words("samples", size, SAMPLES) % np.uint64(size)).astype(np.int64)
    picks[0] = size - 1
    return np.sort(picks)


@dataclass(frozen=True)
class ImageReference:
    """What the Pillow-backed image processor makes of one image."""

    size: tuple[int, int]
    """Height and width as stored in the file."""
    budget: int
    error: str | None
    """The processor's own message where it refuses; then nothing below is set."""
    patches: tuple[int, int]
    """Rows and columns of 16-pixel patches; positions are (x, y), x fastest."""
    tokens: int
    integer: bool
    """Every value is ``float32(float64(k) * (1 / 255))`` for a whole k in 0..255; then the hashes are set."""
    sha256: str | None
    """Of the valid ``pixel_values`` ``[rows * columns, 768]`` as float32 bytes."""
    sha256_uint8: str | None
    """The same times 255, as uint8."""
    samples: F32
    """Values of the flattened valid ``pixel_values`` at ``sample_indices(rows * columns * 768)``."""


@lru_cache
def load_images() -> dict[str, ImageReference]:
    """By ``name/path`` (a file), ``name/pil`` (a Pillow image), ``name/array``; ``photo@70/pil`` for other budgets."""
    facts = json.loads((DATA / "images.json").read_text())
    out = {}
    with np.load(DATA / "images.npz") as z:
        for key, f in facts.items():
            samples = z[key.replace("/", ":")] if "error" not in f else np.zeros(0, np.float32)
            out[key] = ImageReference(
                tuple(f["size"]), f["budget"], f.get("error"), tuple(f.get("patches", (0, 0))), f.get("tokens", 0),
                f.get("integer", False), f.get("sha256"), f.get("sha256_uint8"), samples,
            )
    return out


@lru_cache
def load_sizes() -> tuple[I64, I64, I64]:
    """``size [500, 2]`` (height, width), ``budget [500]``, ``target [500, 2]`` (resized height and width)."""
    with np.load(DATA / "sizes.npz") as z:
        return z["size"].astype(np.int64), z["budget"].astype(np.int64), z["target"].astype(np.int64)


def frame_indices(valid: int) -> I64:
    """At most six of the ``valid`` frames, the first and the last included."""
    return np.unique(np.linspace(0, valid - 1, min(6, valid)).astype(np.int64))


@dataclass(frozen=True)
class FeatureReference:
    """Log-mel features of one sound of ``media.SOUNDS``, alone in its batch."""

    total: int
    """Frames with those of the padding (to a multiple of 128 samples)."""
    valid: int
    tokens: int
    """Soft tokens of the clip."""
    frame_index: I64
    """Which frames ``frames`` holds, the first and the last valid one included."""
    frames: F32
    """``[len(frame_index), 128]``."""
    frame_means: F32
    """``[valid]``: the mean over the 128 bins of every valid frame."""


@lru_cache
def load_features() -> dict[tuple[str, int], FeatureReference]:
    """By (sound, samples)."""
    out = {}
    with np.load(DATA / "features.npz") as z:
        for key in z.files:
            if key.endswith(":shape"):
                name, n, _ = key.split(":")
                total, _, valid, tokens = z[key].tolist()
                out[name, int(n)] = FeatureReference(
                    total, valid, tokens, frame_indices(valid), z[f"{name}:{n}:frames"], z[f"{name}:{n}:frame_means"]
                )
    return out


MULTIMODAL = ("e2b-mm", "dense-mm", "odd-e2b", "odd-moe")
_MM = DATA / "multimodal"


def pixels(key: str, grids: list[tuple[int, int]], dim: int, pooling: int) -> tuple[F32, I64]:
    """Patches ``[images, patches, dim]`` in 0..1 and positions ``[images, patches, 2]`` for grids (columns, rows).

    Padded to the largest image with zeros and (-1, -1), plus one pooling cell where the images are equally large.
    """
    counts = [columns * rows for columns, rows in grids]
    most = max(counts) + (pooling**2 if len(set(counts)) == 1 and len(counts) > 1 else 0)
    values = np.zeros((len(grids), most, dim), np.float32)
    positions = np.full((len(grids), most, 2), -1, np.int64)
    for k, (columns, rows) in enumerate(grids):
        whole = raw_words(f"pixels:{key}", k, counts[k] * dim) % np.uint64(256)
        values[k, : counts[k]] = (whole.astype(np.float64) * (1 / 255)).astype(np.float32).reshape(counts[k], dim)
        positions[k, : counts[k]] = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    return values, positions


def features(key: str, frames: list[int], mel: int) -> tuple[F32, NDArray[np.bool_]]:
    """Features ``[clips, longest, mel]`` and their mask ``[clips, longest]`` (True = valid); zeros where padded."""
    mask = np.arange(max(frames)) < np.array(frames)[:, None]
    values = np.stack([normal(f"features:{key}", k, max(frames) * mel).reshape(-1, mel) for k in range(len(frames))])
    return np.where(mask[..., None], values * 1.5 - 1, 0).astype(np.float32), mask


@dataclass(frozen=True)
class MediaCase:
    """A prompt with media and what transformers computes for it in fp32; None where a kind of media is absent."""

    ids: I64
    """``[batch, T]``, placeholders already expanded."""
    logits: F32
    """``[batch, T, vocab]``."""
    greedy: I64
    """``[batch, 8]`` greedy tokens, no stop id applied."""
    pixel_values: F32 | None
    """``[images, patches, 3 * patch ** 2]``, padded; the images of row 0 first."""
    image_position_ids: I64 | None
    """``[images, patches, 2]``: (x, y), -1 = padding."""
    pixel_values_videos: F32 | None
    """As ``pixel_values``: the frames of one video."""
    video_position_ids: I64 | None
    input_features: F32 | None
    """``[clips, frames, mel]``."""
    input_features_mask: NDArray[np.bool_] | None
    """``[clips, frames]``: True = valid."""
    vision_tower: F32 | None
    """``[soft tokens, vision hidden]`` of all images (or frames) in turn, before the embedder."""
    vision_soft: F32 | None
    """``[soft tokens, hidden]``: after the embedder."""
    audio_tower: F32 | None
    """``[soft tokens, output_proj_dims]`` of the valid frames of all clips in turn, before the embedder."""
    audio_soft: F32 | None
    """``[soft tokens, hidden]``: after the embedder."""


@dataclass(frozen=True)
class MultimodalReference:
    """A tiny checkpoint with towers and its cases by name."""

    name: str
    config: dict[str, Any]
    cases: dict[str, MediaCase]

    def folder(self, target: Path) -> Path:
        """The checkpoint: the committed folder, or, for the odd ones, written into ``target`` from drawn weights."""
        committed = _MM / self.name
        if (committed / "model.safetensors").is_file():
            return committed
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(committed / "config.json", target / "config.json")
        shapes = json.loads((committed / "tensors.json").read_text())
        weights = {name: draw(name, tuple(shape), 0) for name, shape in shapes.items()}
        write_safetensors(target / "model.safetensors", weights)
        return target


def case_inputs(key: str, case: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The media arrays of a case, drawn anew from its description (sizes only)."""
    vision, out = config["vision_config"], dict.fromkeys(
        ("pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids", "input_features",
         "input_features_mask")
    )
    dim, pooling = 3 * vision["patch_size"] ** 2, vision["pooling_kernel_size"]
    for kind, values, positions in (
        ("images", "pixel_values", "image_position_ids"), ("frames", "pixel_values_videos", "video_position_ids")
    ):
        if grids := [(columns, rows) for columns, rows in case.get(kind, [])]:
            out[values], out[positions] = pixels(f"{key}:{kind}", grids, dim, pooling)
    if case.get("clips"):
        out["input_features"], out["input_features_mask"] = features(key, case["clips"], case["mel"])
    return out


@lru_cache
def load_multimodal(name: str) -> MultimodalReference:
    """``e2b-mm`` (small vision, audio), ``dense-mm`` (large vision), ``odd-e2b``, ``odd-moe`` (odd sizes)."""
    config = json.loads((_MM / name / "config.json").read_text())
    described = json.loads((_MM / f"{name}.json").read_text())
    outputs = ("ids", "logits", "greedy", "vision_tower", "vision_soft", "audio_tower", "audio_soft")
    cases = {}
    with np.load(_MM / f"{name}.npz") as z:
        for case, facts in described.items():
            stored = {k: z[f"{case}:{k}"] if f"{case}:{k}" in z.files else None for k in outputs}
            cases[case] = MediaCase(**stored, **case_inputs(f"{name}:{case}", facts, config))
    return MultimodalReference(name, config, cases)


TRAINING: dict[str, str | None] = {
    "e2b": None, "e4b": None, "moe": None, "dense": None, "e2b-mm": "image_and_audio", "dense-mm": "two_images"
}
"""Checkpoints with training references, and the case of a multimodal one whose inputs they use."""


@dataclass(frozen=True)
class ParameterReference:
    """One parameter's gradient and its values after one step from the committed weights, in fp32."""

    norm: float
    """Euclidean norm of the whole gradient."""
    index: I64
    """Positions in the flattened tensor that the arrays below hold; those of the largest gradients are among them."""
    gradient: F32
    sgd: F32
    """Values after one step of SGD (lr 1e-3)."""
    adamw: F32
    """Values after one step of AdamW (lr 1e-3, betas 0.9 and 0.999, eps 1e-8, decay 0.01 on ndim >= 2 only)."""


@dataclass(frozen=True)
class TrainingReference:
    """Loss and gradients of one batch."""

    labels: I64
    """``[batch, T]`` aligned with the ids of the reference (``load(name).ids`` or the case's ``ids``)."""
    losses: dict[str, list[float]]
    """``sgd`` and ``adamw``: the loss before each of three steps on the same batch, and after the last."""
    parameters: dict[str, ParameterReference]
    """By full checkpoint name."""


@lru_cache
def load_training(name: str) -> TrainingReference:
    """A checkpoint of ``TRAINING``."""
    with np.load(DATA / "training" / f"{name}.npz") as z:
        ends = np.cumsum(z["counts"])[:-1]
        columns = [np.split(z[k], ends) for k in ("index", "gradient", "sgd", "adamw")]
        parameters = {
            str(key): ParameterReference(float(norm), index.astype(np.int64), gradient, sgd, adamw)
            for key, norm, index, gradient, sgd, adamw in zip(z["names"], z["norms"], *columns, strict=True)
        }
        losses = {kind: z[f"{kind}_losses"].tolist() for kind in ("sgd", "adamw")}
        return TrainingReference(z["labels"], losses, parameters)
