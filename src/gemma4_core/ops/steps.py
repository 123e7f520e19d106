"""``Outcome``: the ordinary result of a step."""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor


@dataclass(frozen=True)
class Outcome:
    """A ``StepResult`` whose choices are tensors; rows of padding may follow the M wanted ones."""

    ids: Tensor
    """int32 ``[M]``."""
    logprobs: Tensor
    """fp32 ``[M]``."""
    hidden: Tensor | None = None
    """``[M, H]``."""
    logits: Tensor | None = None
    """fp32 ``[M, V]``."""
    count: int = 1
    """Wanted rows, M."""

    def read(self) -> list[tuple[int, float]]:
        """See ``StepResult.read``."""
        return list(zip(self.ids.tolist()[: self.count], self.logprobs.tolist()[: self.count], strict=True))


@dataclass(frozen=True)
class Hidden:
    """A ``StepResult`` of rows that choose nothing."""

    hidden: Tensor | None
    """``[M, H]``, None where no row is wanted."""
    logits: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """There are none."""
        raise ValueError("rows without sampling choose nothing")

    def read(self) -> list[tuple[int, float]]:
        """Nothing."""
        return []
