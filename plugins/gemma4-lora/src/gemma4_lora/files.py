"""Adapter folders in the peft layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

A linear layer's pair is ``<key>.lora_A.weight [r, in]`` and ``<key>.lora_B.weight [out, r]``. A stack of E experts
has ``[E * r, in]``, expert by expert, and ``[out, r * E]``, rank by rank (``ParamWrapper`` of peft 0.21.2,
``tuners/lora/layer.py``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from gemma4_core import CheckpointError, InputError
from gemma4_core.checkpoint import (
    LAST,
    STORED,
    Entry,
    Shard,
    atomic_folder,
    cached_snapshot,
    float32_values,
    replaceable_adapter,
)
from gemma4_core.config import GemmaConfig, ignorable
from gemma4_core.formatting import shown, shown_path
from gemma4_lora.config import CONFIG_FILE, LoraConfig, config_json, read_config
from gemma4_lora.names import KEY_PREFIX, WEIGHT, adaptable, bare, is_stack, keys_of, module_of, named_by

MODEL_FILE = "adapter_model.safetensors"
HALVES = ("lora_A", "lora_B")
ROOM = 150
"""A message lists a second fault if the first is shorter than this."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A low-rank change of one matrix: ``scale * b @ a``."""

    a: np.ndarray
    """fp32 ``[r, in]``, or ``[experts, r, in]``."""
    b: np.ndarray
    """fp32 ``[out, r]``, or ``[experts, out, r]``."""
    scale: float

    def rows(self, index: np.ndarray) -> np.ndarray:
        """The change of some rows ``[n, in]`` of a matrix, or of some experts ``[n, out, in]`` of a stack."""
        change = self.b[index] @ (self.a[index] if self.a.ndim == 3 else self.a)
        return np.asarray(change * np.float32(self.scale), np.float32)


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """An adapter in host memory, by checkpoint name of the matrices that it changes."""

    config: LoraConfig
    pairs: Mapping[str, Pair]


@dataclass(frozen=True)
class Found:
    """Where one matrix's pair is in a file."""

    a: Entry
    b: Entry
    rank: int
    scale: float


def read_adapter(folder: Path | str, config: GemmaConfig) -> AdapterFiles:
    """Read a folder for a base model. Raises CheckpointError, where possible from the header alone."""
    folder = Path(folder)
    shard, lora, found = open_adapter(folder, config)
    try:
        shapes = adaptable(config)
        return AdapterFiles(lora, {name: read_pair(shard, name, place, shapes[name]) for name, place in found.items()})
    finally:
        shard.file.close()


def check_adapter(folder: Path | str, config: GemmaConfig) -> None:
    """Compare a folder's config and header with a base model. Raises CheckpointError."""
    open_adapter(Path(folder), config)[0].file.close()


def open_adapter(folder: Path, config: GemmaConfig) -> tuple[Shard, LoraConfig, dict[str, Found]]:
    """Open a folder: its file, its config, and where each matrix's pair is."""
    folder, where = newest(folder), shown_path(folder)
    lora = read_config(folder)
    if not (folder / MODEL_FILE).exists():
        pickled = (folder / "adapter_model.bin").exists()
        also = "; adapter_model.bin is a pickle, which is never opened: save it again as safetensors" if pickled else ""
        raise CheckpointError(f"adapter {where} has no {MODEL_FILE}{also}")
    shard = Shard(folder / MODEL_FILE)
    try:
        return shard, lora, fitted(shard.header.tensors, lora, config, where)
    except BaseException:
        shard.file.close()
        raise


def newest(folder: Path) -> Path:
    """The folder itself, or its last checkpoint if it is a training run's; if there is no such folder, the snapshot of
    that hub name in the Hugging Face cache. Raises CheckpointError."""
    where = shown_path(folder)
    try:
        for found in (folder, folder / LAST):
            if (found / CONFIG_FILE).exists():
                return found
        there = folder.is_dir()
        if not there and not folder.exists() and (cached := cached_snapshot(str(folder), CONFIG_FILE)) is not None:
            return cached
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise CheckpointError(f"adapter {where} cannot be opened: {reason}; check path and permissions") from fault
    if not there:
        raise CheckpointError(f"adapter {where} is not a folder, nor in the Hugging Face cache; give a folder with "
                              f"{CONFIG_FILE} and {MODEL_FILE}, or a hub name after: hf download OWNER/NAME")
    raise CheckpointError(f"adapter {where} has no {CONFIG_FILE}; give a folder as peft or gemma4 train writes it")


def fitted(
    entries: Mapping[str, Entry], lora: LoraConfig, config: GemmaConfig, where: str
) -> dict[str, Found]:
    """Each pair with the matrix that it changes. Raises CheckpointError that counts the pairs that do not fit."""
    shapes, faults = adaptable(config), []
    found: dict[str, Found] = {}
    modules: dict[str, dict[str, Entry]] = {}
    for key, entry in entries.items():
        parts = re.fullmatch(rf"{re.escape(KEY_PREFIX)}(.+)\.(lora_A|lora_B)\.weight", key)
        if parts is None:
            faults.append(f"{short_key(key)} is not a LoRA tensor of a linear layer or of experts")
        elif entry.dtype not in STORED:
            faults.append(f"{short_key(key)} is {entry.dtype}; {', '.join(STORED)} can be read")
        else:
            modules.setdefault(parts[1], {})[parts[2]] = entry
    for module, halves in modules.items():
        names = named_by(module, shapes)
        if set(halves) != set(HALVES):
            lacking = next(half for half in HALVES if half not in halves)
            faults.append(f"{short_key(f'{module}.{lacking}.weight')} is missing")
        elif not names and not unused(config, module):
            faults.append(f"the model has no matrix {short_key(module)}")
        elif names:
            known = {name: lora.of(peft_name(module, name)) for name in names}
            fits = [name for name in names if name not in found and fit(halves, shapes[name], known[name][0])]
            if fits:
                found[fits[0]] = Found(halves["lora_A"], halves["lora_B"], *known[fits[0]])
            else:
                faults.append(misfit(module, halves, shapes[names[0]], known[names[0]][0]))
    if faults:
        raise misfits(faults, where)
    if not found:
        raise CheckpointError(f"adapter {where} changes no matrix of this model")
    return found


def unused(config: GemmaConfig, module: str) -> bool:
    """Whether a module is K or V of a layer that uses another layer's: files may adapt it, but nothing reads it."""
    return ignorable(config, module + WEIGHT)


def peft_name(module: str, name: str) -> str:
    """The name that patterns are matched against: a module as the file spells it, for experts their parameter."""
    module = bare(module)
    return f"{module}.{name.rpartition('.')[2]}" if is_stack(name) else module


def stored_shapes(shape: Sequence[int], rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of A and B in the file for a matrix ``[out, in]`` or a stack ``[experts, out, in]``."""
    *experts, out, inner = shape
    wide = rank * math.prod(experts)
    return (wide, inner), (out, wide)


def fit(halves: Mapping[str, Entry], shape: Sequence[int], rank: int) -> bool:
    """Whether a pair has this rank and fits a matrix of this shape."""
    return (halves["lora_A"].shape, halves["lora_B"].shape) == stored_shapes(shape, rank)


def misfit(module: str, halves: Mapping[str, Entry], shape: Sequence[int], rank: int) -> str:
    """The message about a pair whose shapes do not fit."""
    stands, wanted = [list(halves[half].shape) for half in HALVES], [list(s) for s in stored_shapes(shape, rank)]
    return f"{short_key(module)} has the shapes {stands}, rank {rank} needs {wanted}"


def short_key(key: str) -> str:
    """A module or key without the common prefix, for messages."""
    return shown(key.removeprefix(KEY_PREFIX), 100)


def misfits(faults: Sequence[str], where: str) -> CheckpointError:
    """One error for all faults, with their number and the first of them."""
    first = "; ".join(faults[:2] if len(faults[0]) < ROOM else faults[:1])
    more = f"; and {len(faults) - 2} more (GEMMA4_DEBUG=1 lists all)" if len(faults) > 2 else ""
    what = "tensor does" if len(faults) == 1 else "tensors do"
    return CheckpointError(f"adapter {shown_path(where, 110)}: {len(faults)} {what} not fit this base model: {first}"
                           f"{more}", tuple(faults))


def read_pair(shard: Shard, name: str, place: Found, shape: tuple[int, ...]) -> Pair:
    """One pair's values. Raises CheckpointError where they are not finite."""
    values = []
    for entry in (place.a, place.b):
        bits = np.empty(entry.shape, STORED[entry.dtype])
        shard.read(entry.start, bits)
        values.append(float32_values(bits, entry.dtype))
        if not np.isfinite(values[-1]).all():
            raise CheckpointError(f"{shown_path(shard.path)}: the pair of {shown(name)} holds NaN or infinite weights")
    a, b = values
    if len(shape) == 3:
        experts, out, inner = shape
        a = a.reshape(experts, place.rank, inner)  # [E * r, in] -> [E, r, in]
        b = b.reshape(out, place.rank, experts).transpose(2, 0, 1)  # [out, r * E] -> [out, r, E] -> [E, out, r]
    return Pair(np.ascontiguousarray(a), np.ascontiguousarray(b), place.scale)


def write_adapter(folder: Path, adapter: AdapterFiles) -> None:
    """Write both files into an existing folder, fp32, so that reading them gives the same bits."""
    arrays: dict[str, np.ndarray] = {}
    for name, key in keys_of(list(adapter.pairs)).items():
        pair = adapter.pairs[name]
        a, b = pair.a, pair.b
        if a.ndim == 3:
            a = a.reshape(-1, a.shape[-1])  # [E, r, in] -> [E * r, in]
            b = b.transpose(1, 2, 0).reshape(b.shape[1], -1)  # [E, out, r] -> [out, r, E] -> [out, r * E]
        for half, values in zip(HALVES, (a, b), strict=True):
            # the library writes the memory behind an array whatever its strides
            arrays[f"{key}.{half}.weight"] = np.ascontiguousarray(values, np.float32)
    with open(folder / MODEL_FILE, "xb") as file:  # save_file would make a file that none but its owner can read
        file.write(safetensors.numpy.save(arrays, {"format": "pt"}))
    modules = [module_of(name) for name in adapter.pairs if not is_stack(name)]
    content = config_json(adapter.config, modules, [name for name in adapter.pairs if is_stack(name)])
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_adapter(folder: Path | str, adapter: AdapterFiles) -> Path:
    """Write an adapter folder, whole or not at all. Raises CheckpointError."""
    if not adapter.pairs:
        raise InputError(f"{shown_path(folder)}: the adapter changes nothing, so there is nothing to save")
    with atomic_folder(folder, replaceable_adapter) as temporary:
        write_adapter(temporary, adapter)
    return Path(folder)
