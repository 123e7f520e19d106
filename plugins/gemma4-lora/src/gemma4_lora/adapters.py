"""Adapters on a model: several loaded at once, switched on and off without loading the base again.

An adapter is applied in one of two ways. *Merged*: each matrix that it changes is replaced by an ordinary one of base
plus change, as ``gemma4 fuse`` would write it; it uses every fast path of the device, and switching writes other
numbers into the same memory, so that captured graphs stay valid. *Beside*: the two thin products are computed beside
the base's; that takes almost no memory, has gradients, and runs on the portable path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

from tinygrad import Tensor

from gemma4_core import DenseMatrix, DenseStack, ExpertStack, InputError, Matrix, Weight
from gemma4_core.devices import free_memory_bytes
from gemma4_core.formatting import is_number, shown
from gemma4_core.ops import upload
from gemma4_lora.config import LoraConfig
from gemma4_lora.files import AdapterFiles, Pair, read_adapter, save_adapter
from gemma4_lora.matrices import LowRank, beside, summed

if TYPE_CHECKING:
    from gemma4_core import GemmaModel

MODES = ("auto", "merged", "beside")
SLACK = 1.2
"""Free memory that merged copies need, as a multiple of their size."""


class Adapter:
    """One loaded adapter: its changes on the model's device by checkpoint name."""

    def __init__(self, config: LoraConfig, changes: Mapping[str, LowRank]) -> None:
        self.config, self.changes = config, dict(changes)

    @property
    def files(self) -> AdapterFiles:
        """A copy of the adapter in host memory."""
        pairs = {name: Pair(c.a.numpy(), c.b.numpy(), c.scale) for name, c in self.changes.items()}
        return AdapterFiles(self.config, pairs)


def places_of(model: GemmaModel) -> dict[str, Weight]:
    """Every matrix of the text model and the loaded towers by checkpoint name."""
    found = dict(model.places)
    for tower in model.towers.values():
        found |= getattr(tower, "places", {})
    return found


class Adapters:
    """The adapters of one model; ``Adapters.of(model)`` is the same object each time.

        adapters = Adapters.of(model)
        adapters.load("poet", "adapters/poet")
        adapters.activate("poet")
        adapters.deactivate()
    """

    def __init__(self, model: GemmaModel) -> None:
        self._model = ref(model)
        self.places, self.device, self.config = places_of(model), model.device, model.config
        self.loaded: dict[str, Adapter] = {}
        self.active: dict[str, float] = {}
        """Names of the active adapters, with their strength."""
        self._bases: dict[str, Matrix | ExpertStack] = {}
        """The base's matrices, by the names of the places that currently hold a changed one."""
        self._copies: dict[str, Tensor] = {}
        """Memory of the merged matrices, which is reused."""

    @classmethod
    def of(cls, model: GemmaModel) -> Adapters:
        """The adapters of a model, none loaded at first."""
        if not isinstance(model.adapters, Adapters):
            model.adapters = cls(model)
        return model.adapters

    def __repr__(self) -> str:
        shown_names = [f"{name} (active)" if name in self.active else name for name in self.loaded]
        return f"<Adapters: {', '.join(shown_names) or 'none'}>"

    @property
    def merged(self) -> bool:
        """Whether the active adapters are merged."""
        return bool(self._copies)

    # ------------------------------------------------------------------------------------------------ loading

    def load(self, name: str, folder: Path | str) -> Adapter:
        """Read an adapter folder under a name; it is not active yet.

        Its changes to towers that were not loaded are left out. Raises InputError for a name that is in use,
        CheckpointError for a folder that cannot be read or does not fit the model.
        """
        self._check_free(name)
        return self.add(name, read_adapter(folder, self.config))

    def add(self, name: str, files: AdapterFiles) -> Adapter:
        """Upload an adapter from host memory. Raises InputError for a name that is in use."""
        self._check_free(name)
        changes = {
            tensor: LowRank(upload(pair.a, self.device), upload(pair.b, self.device), pair.scale)
            for tensor, pair in files.pairs.items() if tensor in self.places
        }  # fmt: skip
        if not changes:
            raise InputError(f"adapter {shown(name)} changes only towers that were not loaded; load them (--modality)")
        self.loaded[name] = Adapter(files.config, changes)
        return self.loaded[name]

    def remove(self, name: str) -> None:
        """Remove an adapter, after switching it off where it is active. Raises InputError for an unknown name."""
        self._get(name)
        if name in self.active:
            self.activate(*(other for other in self.active if other != name))
        del self.loaded[name]

    def save(self, name: str, folder: Path | str) -> Path:
        """Write an adapter as a folder. Raises InputError for an unknown name, CheckpointError."""
        return save_adapter(folder, self._get(name).files)

    # ------------------------------------------------------------------------------------------------ switching

    def activate(self, *names: str, strength: float = 1.0, mode: str = "auto") -> None:
        """Activate these adapters, with their changes added up; without names, the same as ``deactivate``.

        Args:
            names: loaded adapters.
            strength: a factor on their scale.
            mode: ``merged``, ``beside``, or ``auto``: merged if the device has room for a copy of what changes.

        Raises:
            InputError: an unknown name or mode, or a strength that is not a finite number.
        """
        if mode not in MODES:
            raise InputError(f"adapter mode {shown(mode)}: choose one of {', '.join(MODES)}")
        if not is_number(strength):
            raise InputError(f"adapter strength {shown(strength)}: a finite number is expected")
        wanted: dict[str, list[LowRank]] = {}
        for name in dict.fromkeys(names):
            for tensor, change in self._get(name).changes.items():
                wanted.setdefault(tensor, []).append(replace(change, scale=change.scale * strength))
        if not wanted:
            self.deactivate()
            return
        if mode == "merged" or (mode == "auto" and self._has_room(wanted)):
            exchanged = self._merge(wanted)
        else:
            exchanged = self._put_beside(wanted)
        self.active = dict.fromkeys(names, float(strength))
        self._invalidate(exchanged)

    def deactivate(self) -> None:
        """Switch all adapters off, which leaves the base at its own speed. They stay loaded."""
        exchanged = bool(self._bases)
        self._restore()
        self.active = {}
        if exchanged:
            self._invalidate(True)

    def _merge(self, wanted: Mapping[str, Sequence[LowRank]]) -> bool:
        """Write base plus changes into copies. Returns whether any place now holds another matrix object."""
        exchanged = bool(self._bases) and not self._copies
        if exchanged:
            self._restore()
        for name in [*wanted, *(name for name in self._copies if name not in wanted)]:
            base = self._base(name)
            merged = summed(base.dense(), wanted.get(name, ())).cast(base.dtype)
            if name in self._copies:
                self._copies[name].assign(merged.contiguous()).realize()
                continue
            self._copies[name] = tensor = merged.contiguous().realize()
            self.places[name].matrix = DenseMatrix(tensor) if isinstance(base, Matrix) else DenseStack(tensor)
            exchanged = True
        return exchanged

    def _put_beside(self, wanted: Mapping[str, Sequence[LowRank]]) -> bool:
        self._restore()
        for name, changes in wanted.items():
            self.places[name].matrix = beside(self._base(name), changes)
        return True

    def _base(self, name: str) -> Matrix | ExpertStack:
        """The base's matrix of a place, remembered before it is replaced."""
        return self._bases.setdefault(name, self.places[name].matrix)

    def _restore(self) -> None:
        for name, base in self._bases.items():
            self.places[name].matrix = base
        self._bases, self._copies = {}, {}

    def _has_room(self, wanted: Mapping[str, Sequence[LowRank]]) -> bool:
        """Whether copies fit into the device's free memory; where that is unknown they are assumed to."""
        free = free_memory_bytes(self.device)
        bases = [self._bases.get(name, self.places[name].matrix) for name in wanted if name not in self._copies]
        need = sum(math.prod(base.shape) * base.dtype.itemsize for base in bases)
        return free is None or need * SLACK <= free

    def _invalidate(self, exchanged: bool) -> None:
        model = self._model()
        if model is not None:
            model.invalidate(graphs=exchanged)

    # ------------------------------------------------------------------------------------------------ helpers

    def _get(self, name: str) -> Adapter:
        if name not in self.loaded:
            raise InputError(f"no adapter {shown(name)} is loaded; loaded are {', '.join(self.loaded) or 'none'}"[:480])
        return self.loaded[name]

    def _check_free(self, name: str) -> None:
        if name in self.loaded:
            raise InputError(f"an adapter {shown(name)} is loaded already; remove it first, or choose another name")
