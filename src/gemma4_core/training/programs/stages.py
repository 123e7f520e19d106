"""The functions that a training step's programs are traced from: start, layer, head, and what goes back through them.

Each gives its outputs by name; gradients of trained tensors are added to sums in fp32, or written as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tinygrad import Tensor, dtypes

from gemma4_core.model.differentiable import start
from gemma4_core.model.layers import Rotation, matrix
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.spans import FreshSpan
from gemma4_core.ops import Operations
from gemma4_core.ops.products import materialized
from gemma4_core.training.loss import summed
from gemma4_core.training.programs.inputs import device_inputs

Outputs = dict[str, Tensor]
Stage = Callable[..., Outputs]


@dataclass(frozen=True)
class Backward:
    """What a stage's way back is to give."""

    trained: tuple[str, ...]
    """Names of the tensors that train, as the stage's weights are named."""
    added: frozenset[str]
    """Those of them whose gradients are added to sums in fp32; others are written as they are."""
    inputs: tuple[str, ...] = ()
    """Inputs whose gradients others need."""

    @property
    def outputs(self) -> set[str]:
        """The names of what is given."""
        sums = {sum_of(name) for name in self.added} | {sum_of(name) for name in "kv" if name in self.inputs}
        return sums | {gradient_of(name) for name in (*self.trained, *self.inputs)}


def gradients(total: Tensor, weights: Mapping[str, Tensor], back: Backward, given: Mapping[str, Tensor]) -> Outputs:
    """Gradients of a scalar by ``gradient of NAME``; tensors that it does not depend on have none."""
    wanted = {name: given[name] for name in back.inputs} | {name: weights[name] for name in back.trained}
    found: Outputs = {}
    for name, gradient in zip(wanted, total.gradient(*wanted.values()), strict=True):
        if gradient.uop.device is None:  # tinygrad's answer where there is no dependence: a constant
            if name in back.inputs:
                gradient = wanted[name].zeros_like().contiguous()
            else:
                continue
        if name in ("k", "v"):
            found[sum_of(name)] = given[sum_of(name)].assign(given[sum_of(name)] + gradient.cast(dtypes.float32))
        elif name not in back.added:
            found[gradient_of(name)] = gradient
        else:
            held = given[sum_of(name)]
            found[sum_of(name)] = held.assign(held + gradient.cast(dtypes.float32))
    return found


def gradient_of(name: str) -> str:
    return f"gradient of {name}"


def sum_of(name: str) -> str:
    return f"sum of {name}"


def start_stage(model: GemmaModel, ops: Operations, weights: Mapping[str, Tensor], back: Backward | None) -> Stage:
    """From ids and media to the stream ``h [B, T, H]`` and per-layer inputs ``ple [layers, B, T, P]``."""

    def run(**given: Tensor) -> Outputs:
        begin = start(model, device_inputs(model, given), ops)
        h = materialized(begin.h)
        ple = None if begin.ple is None else begin.ple.permute(2, 0, 1, 3)  # [B, T, layers, P] -> [layers, B, T, P]
        made = {"h out": h} | ({} if ple is None else {"ple out": ple})
        if back is None:
            return made
        total = (h.cast(dtypes.float32) * given["dh"].cast(dtypes.float32)).sum()
        if ple is not None:
            total = total + (ple.cast(dtypes.float32) * given["dple"].cast(dtypes.float32)).sum()
        return made | gradients(total, weights, back, given)

    return run


def layer_stage(
    model: GemmaModel, index: int, ops: Operations, weights: Mapping[str, Tensor], donor: bool, back: Backward | None
) -> Stage:
    """One layer: from the stream ``h [B, T, H]`` to the next. ``donor`` says that later layers share its K and V."""
    layer = model.text.layers[index]
    config = layer.config

    def run(**given: Tensor) -> Outputs:
        h = given["h"]
        rotation = Rotation(*[(given["cos"], given["sin"])] * 2)
        span = FreshSpan(int(h.shape[1]), model.device, given.get("blocks"), given.get("segments"))
        if config.is_shared:
            kv = span.extend(config, given["k"], given["v"])
        else:
            kv = layer.keys_values(h, rotation, span, ops)
        if donor:
            kv = replace(kv, k=materialized(kv.k), v=materialized(kv.v))
        out = materialized(layer(h, kv, given.get("ple"), rotation, ops))
        made = {"h out": out} | ({"k out": kv.k, "v out": kv.v} if donor else {})
        if back is None:
            return made
        total = (out.cast(dtypes.float32) * given["dh"].cast(dtypes.float32)).sum()
        if donor:
            for name, held in (("k", kv.k), ("v", kv.v)):
                total = total + (held.cast(dtypes.float32) * given[sum_of(name)]).sum()
        return made | gradients(total, weights, back, given)

    return run


def head_stage(model: GemmaModel, ops: Operations, weights: Mapping[str, Tensor], back: Backward | None) -> Stage:
    """Some rows ``h [n, H]`` of the last layer's output against ``targets [n]``: their loss times ``scale [1]`` is
    added to ``loss [1]``."""
    text, cap = model.text, model.config.text_config.final_logit_softcapping

    def run(**given: Tensor) -> Outputs:
        x = materialized(ops.rms_norm(given["h"], text.norm, model.config.text_config.rms_norm_eps))
        part = summed(x, given["targets"], matrix(text.embedding), cap, ops) * given["scale"].reshape(())
        loss = given["loss"].assign(given["loss"] + part.reshape(1))
        return {"loss": loss} | ({} if back is None else gradients(part, weights, back, given))

    return run
