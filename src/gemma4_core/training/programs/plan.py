"""Which programs the passes of one shape of batch need, and which layer runs which."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from tinygrad import Tensor, dtypes

from gemma4_core.config import LayerConfig
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops.differentiable import differentiable_operations
from gemma4_core.training.programs.compiling import Form, Task
from gemma4_core.training.programs.kinds import Walk
from gemma4_core.training.programs.stages import Backward, Stage, head_stage, layer_stage, start_stage, sum_of

PIECE = 1 << 26
"""Logits held at once: 256 MiB in fp32."""


@dataclass(frozen=True)
class Trained:
    """What a pass gives gradients of, and where they go. Parameters are known by ``id``."""

    parameters: frozenset[int] = frozenset()
    added: frozenset[int] = frozenset()
    """Those whose gradients are added to what is there, in fp32."""
    target: Callable[[int], Tensor] | None = None
    """The realized tensor that the gradient of a parameter goes to, of its shape, in its dtype or in fp32."""


class Plan:
    """The tasks of a shape: start, a layer of each kind, head; with what goes back through them where something
    trains."""

    def __init__(self, model: GemmaModel, forms: Mapping[str, Form], trained: Trained) -> None:
        """``forms`` are shapes and types of the batch's arrays."""
        self.model, self.forms, self.trained = model, dict(forms), trained
        self.ops, self.config = differentiable_operations(model.operations), model.config.text_config
        self.batch, self.length = self.forms["ids"][0]
        self.tasks: dict[Hashable, Task] = {}
        self._assign()

    @property
    def tensors(self) -> list[Tensor]:
        """What the programs read by its place in memory."""
        walks = [*self.walks, self.head_walk]
        return [*self.start_weights.values(), *(t for walk in walks for t in walk.tensors.values())]

    @property
    def rows(self) -> Form:
        return (self.batch, self.length, self.config.hidden_size), self.model.dtype

    def _assign(self) -> None:
        text, layers = self.model.text, self.config.layers
        trained = self.trained.parameters
        self.walks = [Walk(layer) for layer in text.layers]
        self.head_walk = Walk({"norm": text.norm, "embedding": text.embedding})
        in_layers = {id(t) for walk in self.walks for t in walk.tensors.values()}
        named = self.model.named_tensors()
        part = self.model.trained_part.tensors if self.model.trained_part is not None else {}
        outside = {**named, **part}
        before: dict[str, Any] = {"embedding": text.embedding, "table": text.ple_table, "dtype": str(text.dtype)}
        if text.per_layer:
            before |= {"projection": text.ple_projection, "norm": text.ple_norm}
        if any("/" in name for name in self.forms):
            before["towers"] = self.model.towers
        self.start_walk = Walk(before)
        known = in_layers | {id(t) for t in outside.values()}
        outside |= {path: t for path, t in self.start_walk.tensors.items() if id(t) not in known}
        self.start_weights = {name: t for name, t in outside.items() if id(t) not in in_layers}
        start_trains = any(id(t) in trained for t in self.start_weights.values())
        owners = [i for i, walk in enumerate(self.walks) if any(id(t) in trained for t in walk.tensors.values())]
        self.lowest = 0 if start_trains else min(owners, default=len(layers))
        """The first layer that something goes back through."""
        if not trained:
            self.lowest = len(layers) + 1
        self.donors = {x.donor for x in layers if x.donor is not None}
        self.start_back = self._back(self.start_weights, ()) if start_trains else None
        self.start_key = self._task("start", self._start_inputs(), self.start_weights, self.start_back,
                                    lambda back: start_stage(self.model, self.ops, self.start_weights, back),
                                    (self.start_walk.form, self.model.config.pad_token_id), self.start_walk.drops)
        self.layer_keys, self.layer_backs = [], []
        for layer, walk in zip(layers, self.walks, strict=True):
            key, back = self._layer(layer.index, walk)
            self.layer_keys.append(key)
            self.layer_backs.append(back)
        self.head_rows = self._head_rows()
        weights = self.head_walk.tensors
        inputs: dict[str, Form] = {
            "h": ((self.head_rows, self.config.hidden_size), self.model.dtype),
            "targets": ((self.head_rows,), dtypes.int32), "loss": ((1,), dtypes.float32),
            "scale": ((1,), dtypes.float32),
        }
        back = self._back(weights, ("h",) if self.lowest <= len(layers) else ()) if trained else None
        self.head_back = back
        self.head_key = self._task("head", inputs, weights, back,
                                   lambda back: head_stage(self.model, self.ops, weights, back),
                                   (self.head_walk.form, self.config.final_logit_softcapping,
                                    self.config.rms_norm_eps))

    def _back(self, weights: Mapping[str, Tensor], inputs: tuple[str, ...]) -> Backward:
        mine = {name: t for name, t in weights.items() if id(t) in self.trained.parameters}
        return Backward(tuple(mine), frozenset(n for n, t in mine.items() if id(t) in self.trained.added), inputs)

    def _task(
        self, what: str, inputs: Mapping[str, Form], weights: Mapping[str, Tensor], back: Backward | None,
        stage: Callable[[Backward | None], Stage], form: Hashable, drops: bool = False,
    ) -> Hashable:
        """The key of a task, which is added; ``drops`` says whether it drops numbers while something trains."""
        given = dict(inputs)
        if back is not None:
            for name in sorted(back.added):  # the order is part of the key, which other processes are to find
                given[sum_of(name)] = tuple(int(n) for n in weights[name].shape), dtypes.float32
        drops = drops and bool(self.trained.parameters)
        key = (what, form, tuple(given.items()), back, drops)
        self.tasks.setdefault(key, Task(lambda: stage(back), given, weights, drops))
        return key

    def _start_inputs(self) -> dict[str, Form]:
        inputs = {name: form for name, form in self.forms.items() if name not in ("targets", "segments", "blocks")}
        if self.start_back is not None:
            inputs["dh"] = self.rows
            if self.per_layer:
                inputs["dple"] = self.ple_form(self.config.num_hidden_layers)
        return inputs

    @property
    def per_layer(self) -> int:
        return int(self.model.text.per_layer or 0)

    def ple_form(self, layers: int | None = None) -> Form:
        front = () if layers is None else (layers,)
        return (*front, self.batch, self.length, self.per_layer), self.model.dtype

    def kv_shape(self, layer: LayerConfig) -> tuple[int, ...]:
        """Of a layer's keys, and of its values."""
        return self.batch, layer.num_key_value_heads, self.length, layer.head_dim

    def _layer(self, index: int, walk: Walk) -> tuple[Hashable, Backward | None]:
        layer, dtype = self.config.layers[index], self.model.dtype
        kv = self.kv_shape(layer)
        half = (self.length, layer.head_dim // 2)
        inputs: dict[str, Form] = {"h": self.rows, "cos": (half, dtype), "sin": (half, dtype)}
        if self.per_layer:
            inputs["ple"] = self.ple_form()
        inputs |= {name: self.forms[name] for name in ("blocks", "segments") if name in self.forms}
        if layer.is_shared:
            inputs |= {"k": (kv, dtype), "v": (kv, dtype)}
        donor = index in self.donors
        back = None
        if index >= self.lowest:
            wanted = ["h"]
            if self.per_layer and self.start_back is not None:
                wanted.append("ple")
            inputs["dh"] = self.rows
            if layer.is_shared and layer.donor is not None and layer.donor >= self.lowest:
                wanted += ["k", "v"]
            if donor or "k" in wanted:
                inputs |= {sum_of(name): (kv, dtypes.float32) for name in "kv"}
            back = self._back(walk.tensors, tuple(wanted))
        key = self._task("layer", inputs, walk.tensors, back, lambda back: layer_stage(
            self.model, index, self.ops, walk.tensors, donor, back), (walk.form, donor), walk.drops)
        return key, back

    def _head_rows(self) -> int:
        """Rows of a piece of the head: the most that divide all of them and have few enough logits."""
        count = self.batch * self.length
        most = max(1, PIECE // self.config.vocab_size)
        return next(n for n in range(min(count, most), 0, -1) if count % n == 0)
