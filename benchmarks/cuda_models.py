"""Models with random weights made on the GPU itself, for the CUDA benchmarks and checks: no folder, no host copy."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.config import expected_text_tensors, parse_config, preset_dict
from gemma4_core.contracts import Context
from gemma4_core.contracts.rows import MediaRows, Rows
from gemma4_core.engine.engine import Engine
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops import Operations
from gemma4_core.ops.graphs import upload
from gemma4_core.weights import DenseMatrix, DenseStack, Weight
from gemma4_plugins.devices.cuda.kernels import launch
from gemma4_plugins.layouts.int8 import Int8Matrix, Int8Stack
from gemma4_plugins.modalities.vision import gemma4_modality_towers

FILL = """
extern "C" __global__ void fill(unsigned short* p, unsigned long long n, float scale, float offset, unsigned seed) {
  for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) {
    unsigned x = (unsigned)i * 2654435761u ^ (unsigned)(i >> 32) * 0x9e3779b9u ^ seed, y;
    x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu; x ^= x >> 16;
    y = x * 0x9e3779b1u ^ x >> 13; y ^= y >> 15;
    float u = (x >> 16) + (x & 65535) + (y >> 16) + (y & 65535);   // nearly normal: four uniform numbers
    float v = offset + scale * (u - 131070.f) * (1.f / 37836.f);
    unsigned b = __float_as_uint(v);
    p[i] = (unsigned short)((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
}
"""


class ModelWithEngine(GemmaModel):
    """Weights without a folder, and an engine over them."""

    @cached_property
    def engine(self) -> Engine:
        """Runs its steps."""
        return Engine(self)


class Filler:
    """Fills bf16 tensors with random numbers at memory speed."""

    def __init__(self) -> None:
        self.kernel = launch.Kernel(FILL, "fill", 256)
        self.seed = 1

    def __call__(self, shape: tuple[int, ...], scale: float, offset: float = 0.0) -> Tensor:
        """A realized tensor with this spread around ``offset``."""
        tensor = Tensor.empty(*shape, dtype=dtypes.bfloat16, device=launch.DEVICE)
        tensor.uop.buffer.ensure_allocated()
        self.fill(tensor, scale, offset)
        return tensor

    def fill(self, tensor: Tensor, scale: float, offset: float = 0.0) -> None:
        """Overwrite a realized bf16 tensor."""
        self.seed = self.seed * 747796405 + 2891336453 & 0xFFFFFFFF
        values = (ctypes.c_uint64(launch.address(tensor)), ctypes.c_uint64(tensor.numel()), ctypes.c_float(scale),
                  ctypes.c_float(offset), ctypes.c_uint32(self.seed))  # fmt: skip
        self.kernel.launch(min(2048, -(-tensor.numel() // 256)), values)


FILL_BYTES = """
extern "C" __global__ void fill_bytes(unsigned* p, unsigned long long n, unsigned seed) {
  for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) {
    unsigned x = (unsigned)i * 2654435761u ^ (unsigned)(i >> 32) * 0x9e3779b9u ^ seed;
    x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu; x ^= x >> 16;
    p[i] = x & 0x7f7f7f7fu | (x * 0x9e3779b1u & 0x80808080u);
  }
}
"""


class ByteFiller:
    """Makes int8 tensors of uniform numbers, and row scales that give them the spread of a bf16 matrix."""

    def __init__(self) -> None:
        self.kernel = launch.Kernel(FILL_BYTES, "fill_bytes", 256)
        self.seed = 1

    def __call__(self, shape: tuple[int, ...], scale: float) -> tuple[Tensor, Tensor]:
        """The numbers, and fp32 scales around ``scale / 74``, since they are 74 on average."""
        self.seed = self.seed * 747796405 + 2891336453 & 0xFFFFFFFF
        tensor = Tensor.empty(*shape, dtype=dtypes.int8, device=launch.DEVICE)
        tensor.uop.buffer.ensure_allocated()
        words = tensor.numel() // 4
        values = (ctypes.c_uint64(launch.address(tensor)), ctypes.c_uint64(words), ctypes.c_uint32(self.seed))
        self.kernel.launch(min(2048, -(-words // 256)), values)
        rows = np.random.default_rng(self.seed).uniform(0.5, 1.5, shape[:-1]).astype(np.float32) * (scale / 74)
        return tensor, upload(rows, launch.DEVICE)


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Spread and mean of a tensor such that activations stay of order one."""
    if len(shape) > 1:
        return (0.06, 0.0) if "per_layer.weight" in name else (shape[-1] ** -0.5, 0.0)
    if name.endswith("layer_scalar"):
        return 0.05, 0.8
    return (0.05, 0.25) if name.endswith(("q_norm.weight", "k_norm.weight")) else (0.2, 1.0)


def random_model(
    data: str | Mapping[str, Any], operations: Operations, layers: int | None = None, int8: bool = False
) -> ModelWithEngine:  # fmt: skip
    """A text model of a preset's name or a config object, in bf16 or with int8 matrices; ``layers`` keeps only that
    many of the first."""
    raw = dict(preset_dict(data, towers=False)) if isinstance(data, str) else dict(data)
    if layers is not None:
        raw = shortened(raw, layers)
    config = parse_config(raw)
    fill, bytes_of, places, tensors = Filler(), ByteFiller(), {}, {}
    for name, shape in expected_text_tensors(config).items():
        if int8 and len(shape) > 1 and not name.endswith("router.proj.weight"):
            kind = Int8Matrix if len(shape) == 2 else Int8Stack
            places[name] = Weight(name, kind(*bytes_of(shape, spread(name, shape)[0]), dtypes.bfloat16))
            continue
        tensor = fill(shape, *spread(name, shape))
        if len(shape) == 1:
            tensors[name] = tensor
        else:
            held = DenseMatrix if len(shape) == 2 else DenseStack
            places[name] = Weight(name, held(tensor, dtypes.bfloat16))
    model = ModelWithEngine(Context(config=config), launch.DEVICE, dtypes.bfloat16, operations, places, tensors)
    return seeing_both_ways(model)


def seeing_both_ways(model: ModelWithEngine) -> ModelWithEngine:
    """The model with the description of a tower whose tokens see each other, if its config says so; no tower itself."""
    if model.config.vision_bidirectional:
        model.tower_specs.extend(gemma4_modality_towers())
    return model


def shortened(raw: dict[str, Any], layers: int) -> dict[str, Any]:
    """The config with its first ``layers`` layers; of the shared ones in proportion."""
    text = dict(raw["text_config"]) if "text_config" in raw else raw
    count, shared = text["num_hidden_layers"], text.get("num_kv_shared_layers", 0)
    text |= {
        "num_hidden_layers": layers, "layer_types": text["layer_types"][:layers],
        "num_kv_shared_layers": shared * layers // count,
    }  # fmt: skip
    return raw | {"text_config": text} if "text_config" in raw else text


def in_fp32(model: ModelWithEngine, operations: Operations) -> ModelWithEngine:
    """The same weights with fp32 arithmetic: the reference for bf16 runs."""
    wide = lambda t: t.cast(dtypes.float32).contiguous().realize()  # noqa: E731
    places = {}
    for name, place in model.places.items():
        held = place.matrix
        if isinstance(held, Int8Matrix | Int8Stack):
            dense = (held.tensor.cast(dtypes.float32) * held.scale.unsqueeze(-1)).contiguous().realize()
        else:
            dense = wide(held.parts()[""])
        places[name] = Weight(name, (DenseMatrix if len(held.shape) == 2 else DenseStack)(dense, dtypes.float32))
    tensors = {name: wide(t) for name, t in model.tensors.items()}
    return seeing_both_ways(
        ModelWithEngine(model.context, launch.DEVICE, dtypes.float32, operations, places, tensors)
    )


def with_chunk(operations: Operations, chunk: int) -> Operations:
    """The operations with another prefill chunk, hence other rings."""
    return dataclasses.replace(operations, prefill_chunk=chunk)


def one_row(ids: Tensor | np.ndarray, position: int, slot: int = 0) -> Rows:
    """One wanted row, as a sequence that is decoding has it; its id int32 ``[1]`` may be on the device."""
    number = lambda n: np.array([n], np.int32)  # noqa: E731
    return Rows(ids, number(slot), number(position), number(0))


def chunk_rows(
    ids: np.ndarray, start: int, wanted: Sequence[int] = (), slot: int = 0, media: MediaRows | None = None
) -> Rows:
    """A chunk of a prompt, int32 ``[N]``, from position ``start`` on; ``wanted`` counts from its first row."""
    count = len(ids)
    positions = np.arange(start, start + count, dtype=np.int32)
    return Rows(ids.astype(np.int32), np.full(count, slot, np.int32), positions, np.array(wanted, np.int32), media)


def binary_name(source: str, features: str) -> str:
    """The file name of a kernel's binary in a folder."""
    return hashlib.sha256(f"{features}\n{source}".encode()).hexdigest()[:16] + ".cubin"


def use_binaries(folder: str) -> None:
    """Use kernels that were compiled beforehand if the folder has them, see ``binary_name``."""
    original = launch.compiler

    class Compiler:
        """Looks in the folder first."""

        def __init__(self, features: str) -> None:
            self.features = features

        def compile_cached(self, source: str) -> bytes:
            path = Path(folder) / binary_name(source, self.features)
            return path.read_bytes() if path.is_file() else original(self.features).compile_cached(source)

    launch.compiler = Compiler  # type: ignore[assignment]
