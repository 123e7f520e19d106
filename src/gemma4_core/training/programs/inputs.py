"""What a training step's programs take: the arrays of a batch, by name."""

from __future__ import annotations

from collections.abc import Mapping

from tinygrad import Tensor

from gemma4_core.model.differentiable import DeviceInputs
from gemma4_core.model.media import encode_arranged
from gemma4_core.model.model import GemmaModel


def device_inputs(model: GemmaModel, inputs: Mapping[str, Tensor]) -> DeviceInputs:
    """What the forward pass starts from, out of ``CheckedBatch.arrays`` as tensors; towers run here."""
    media: dict[str, list[Tensor]] = {}
    for name, tensor in inputs.items():
        if "/" in name:
            media.setdefault(name.split("/")[0], []).append(tensor)
    optional = {name: inputs.get(name) for name in ("soft", "positions", "blocks", "segments", "ple_rows")}
    return DeviceInputs(inputs["ids"], encode_arranged(model, media) if media else None, **optional)
