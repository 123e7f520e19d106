"""Whether weights are still numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tinygrad import Tensor, dtypes

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown


def check_finite(tensors: Mapping[str, Tensor], when: str) -> None:
    """Raise InputError, naming the tensor, where trained weights hold NaN or infinities, or are so large that their
    squares do."""
    sums = [tensor.detach().cast(dtypes.float32).square().sum() for tensor in tensors.values()]
    Tensor.realize(*sums)
    for name, total in zip(tensors, sums, strict=True):
        if not math.isfinite(total.item()):
            raise InputError(f"{when}: {shown(name)} holds values that are not finite numbers, training cannot go on; "
                             f"use a lower --lr, a longer --warmup or a --clip")
