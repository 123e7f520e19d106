"""Reference outputs of transformers for tests, and the deterministic weights behind them (numpy only).

``load("e2b")`` gives token ids, fp32 logits, greedy tokens and the checkpoint folder that made them;
``tests/reference/README.md`` describes every file and how it was made.  ``draw`` produces the value of every parameter
from its name and a seed, bit for bit on every machine, so that further seeds need no committed weights.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "reference" / "data"
TEXT_FAMILIES = ("e2b", "e4b", "moe", "dense")
KL_SEEDS = (0, 1, 2, 3)

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_PREFIXES = ("model.language_model.", "model.")
_POSITIVE = {  # uniform ranges of parameters that multiply; the first pattern found in the name counts
    r"layer_scalar$": (0.7, 1.1),
    r"per_expert_scale$": (0.5, 1.5),
    r"router\.scale$": (0.5, 2.0),
    r"[qk]_norm\.weight$": (0.3, 0.7),
    r"input_min$": (-1.6, -0.7),
    r"input_max$": (0.8, 1.9),
    r"output_min$": (-2.0, -0.9),
    r"output_max$": (1.0, 2.3),
    r"std_scale$": (0.1, 0.3),
    r"^norm\.weight$": (1.0, 3.0),
    r"norm[^.]*\.weight$": (0.5, 1.5),
    r"norm_(pre_attn|post_attn|out)\.weight$": (0.5, 1.5),
}
_SPREAD = {  # standard deviations that are not 1/sqrt(fan in)
    r"embed_tokens\.weight$": 0.16,
    r"embed_tokens_per_layer\.weight$": 0.25,
    r"per_layer_model_projection\.weight$": 0.5,
    r"router\.proj\.weight$": 1.5,
    r"position_embedding_table$": 0.5,
    r"per_dim_scale$": 0.5,
    r"std_bias$": 3.0,
    r"bias$": 0.3,
}


def base_name(name: str) -> str:
    """A checkpoint name without its prefix: the same for text-only and conditional checkpoints."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def round_bf16(x: NDArray[Any]) -> F32:
    """Nearest bf16 value (ties to even) of each element, as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).reshape(np.shape(x))


def _raw(key: str, seed: int, n: int) -> NDArray[np.uint64]:
    """``n`` stable 64-bit words: a bit generator's raw stream never changes between numpy versions."""
    return np.random.PCG64([seed, zlib.crc32(key.encode())]).random_raw(n)


def _normal(key: str, seed: int, n: int) -> NDArray[np.float64]:
    """Close to normal: the sum of a word's four 16-bit pieces, exact in float64."""
    raw = _raw(key, seed, n)
    pieces = sum(((raw >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.float64) for s in (0, 16, 32, 48))
    return (pieces - 4 * 32767.5) / (65536 / np.sqrt(3.0))


def draw(name: str, shape: tuple[int, ...], seed: int) -> F32:
    """The bf16-representable value of parameter ``name`` (prefix ignored) for ``seed``, as float32 ``shape``."""
    key, n = base_name(name), int(np.prod(shape))
    for pattern, (low, high) in _POSITIVE.items():
        if re.search(pattern, key):
            uniform = (_raw(key, seed, n) >> np.uint64(11)) * 2.0**-53
            return round_bf16((low + (high - low) * uniform).reshape(shape))
    spread = next((v for p, v in _SPREAD.items() if re.search(p, key)), None)
    fan_in = shape[-1] if "conv" not in key else int(np.prod(shape[1:]))
    return round_bf16((_normal(key, seed, n) * (spread or fan_in**-0.5)).reshape(shape))


def draw_ids(key: str, seed: int, shape: tuple[int, ...], low: int, high: int) -> I64:
    """Token ids in ``[low, high)``, stable as ``draw``."""
    return (low + _raw("ids:" + key, seed, int(np.prod(shape))) % np.uint64(high - low)).astype(np.int64).reshape(shape)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensor table of a safetensors file: name to dtype, shape and offsets."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header: dict[str, dict[str, Any]] = json.loads(f.read(size))
    header.pop("__metadata__", None)
    return header


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor in all ``*.safetensors`` of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tuple(t["shape"]) for file in files for name, t in read_header(file).items()}


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str = "BF16") -> None:
    """Write float arrays as ``BF16``, ``F16`` or ``F32``."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, at = [], 0
    for name, value in tensors.items():
        if dtype == "BF16":
            blob = (round_bf16(value).view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            blob = np.asarray(value, {"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_seed(source: Path, seed: int, folder: Path, dtype: str = "BF16") -> Path:
    """A checkpoint like ``source`` (same config and tensor names) with the weights of another seed, in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*config*.json"):
        shutil.copy(file, folder / file.name)
    weights = {name: draw(name, shape, seed) for name, shape in tensor_shapes(source).items()}
    write_safetensors(folder / "model.safetensors", weights, dtype)
    return folder


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
    """``[4]``: mean KL of transformers' own bf16 run (eager attention and experts) over all prompts of a seed."""
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
    picks = (_raw("samples", size, SAMPLES) % np.uint64(size)).astype(np.int64)
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
        whole = _raw(f"pixels:{key}", k, counts[k] * dim) % np.uint64(256)
        values[k, : counts[k]] = (whole.astype(np.float64) * (1 / 255)).astype(np.float32).reshape(counts[k], dim)
        positions[k, : counts[k]] = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    return values, positions


def features(key: str, frames: list[int], mel: int) -> tuple[F32, NDArray[np.bool_]]:
    """Features ``[clips, longest, mel]`` and their mask ``[clips, longest]`` (True = valid); zeros where padded."""
    mask = np.arange(max(frames)) < np.array(frames)[:, None]
    values = np.stack([_normal(f"features:{key}", k, max(frames) * mel).reshape(-1, mel) for k in range(len(frames))])
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
