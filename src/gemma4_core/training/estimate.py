"""What a run takes before it begins: memory from shapes and from the linked programs of its largest step, seconds from
steps that are timed."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.helpers import Context as TinygradContext
from tinygrad.helpers import GlobalCounters

from gemma4_core.devices import free_memory_bytes
from gemma4_core.errors import InputError
from gemma4_core.formatting import human_bytes
from gemma4_core.plugins import registry
from gemma4_core.training.checked import CheckedBatch
from gemma4_core.training.optimizer import candidates, choose, patterns

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel
    from gemma4_core.training.data.batches import Batches, Rows
    from gemma4_core.training.programs.passes import Pass
    from gemma4_core.training.trainer import Trainer

TIMED_SECONDS, MOST_TIMED = 1.0, 5
"""Steps of a size are timed until this much time has passed, or as often."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Sizes in bytes; what Python and the device's driver take comes on top."""

    weights: int
    gradients: int
    optimizer_state: int
    activations: int | None
    """What the largest step holds besides; None where it is not made of programs."""
    free: int | None
    """What the device had left before the first step; None where it does not tell."""
    first_seconds: float
    """Until the first step is done, with the compiling that it needed now."""
    length_seconds: float
    """What the first step of another length took longer: its programs are compiled, and kept for later processes."""
    lengths: int
    """Different lengths of batches in an epoch."""
    timed: Mapping[int, float]
    """Seconds of a step by its tokens, padding included: the smallest and the largest step of an epoch."""
    step_seconds: float
    """The mean over an epoch: steps of other sizes are taken to lie on the line between the timed ones."""
    steps: int

    @property
    def total(self) -> int:
        """Bytes of all that is known."""
        return self.weights + self.gradients + self.optimizer_state + (self.activations or 0)

    @property
    def seconds(self) -> float:
        """Of all steps, with the compiling for all lengths."""
        return self.first_seconds + self.length_seconds * (self.lengths - 1) + self.step_seconds * (self.steps - 1)


# ----------------------------------------------------------------------------------------- before weights change


def weights_bytes(model: GemmaModel) -> int:
    """What a model's tensors take, those of an adapter that trains beside it included."""
    part = {} if model.trained_part is None else model.trained_part.tensors
    return sum({id(t): int(t.nbytes()) for t in (*model.named_tensors().values(), *part.values())}.values())


def check_state_fits(
    model: GemmaModel, optimizer: str, options: Mapping[str, Any], trainable: Sequence[str] | None,
    frozen: Sequence[str] | None, several: bool, limit: int | None,
) -> None:  # fmt: skip
    """Raise InputError where gradients and optimizer state alone exceed what may be used, before they are made.

    Args:
        several: whether gradients of several batches are added up, in fp32.
        limit: bytes of the device's memory that training may use, None for all that is free.
    """
    device, sizes = str(model.device), candidates(model)
    names = choose(sizes, patterns(trainable, "trainable"), patterns(frozen, "frozen"))
    own = model.named_tensors() if model.trained_part is None else model.trained_part.tensors
    forms = {name: (sizes[name], trained_dtype(own.get(name), model.dtype), ndim(model, own, name)) for name in names}
    gradients = sum(size * (4 if several else dtype.itemsize) for size, dtype, _ in forms.values())
    state = state_bytes(model, optimizer, options, forms)
    # weights of a file that is mapped into memory are copied before they change
    copies = sum(size * dtype.itemsize for size, dtype, _ in forms.values()) if device.startswith("CPU") else 0
    free = free_memory_bytes(device)
    room = float("inf") if free is None else free
    if limit is not None:
        room = min(room, limit - GlobalCounters.mem_used_per_device.get(device, 0))
    if gradients + state + copies > room:
        copied = f", copies of the weights ({human_bytes(copies)})" if copies else ""
        raise InputError(
            f"training needs {human_bytes(gradients + state + copies)} of memory for gradients "
            f"({human_bytes(gradients)}), optimizer state ({human_bytes(state)}){copied} beside the model's "
            f"{human_bytes(weights_bytes(model))}, and {human_bytes(max(int(room), 0))} may be used; train an adapter "
            f"(--lora) or fewer tensors (--trainable), take another --optimizer, or give a larger --max-memory"
        )


def trained_dtype(tensor: Tensor | None, dtype: DType) -> DType:
    """The type of a tensor that trains; quantised matrices become ordinary ones."""
    return dtype if tensor is None or not tensor.is_floating_point() else tensor.dtype


def ndim(model: GemmaModel, own: Mapping[str, Tensor], name: str) -> int:
    """The axes of a tensor that trains."""
    place = model.places.get(name)
    return len(place.matrix.shape) if place is not None else own[name].ndim


def state_bytes(
    model: GemmaModel, optimizer: str, options: Mapping[str, Any], forms: Mapping[str, tuple[int, DType, int]]
) -> int:
    """What an optimizer will hold for tensors of these numbers of elements, types and axes: it is built over small ones
    of their names and types, one for those that differ in nothing but a number in their name."""
    backend = registry.select("optimizer", model.context, optimizer)
    shares: dict[tuple[str, DType, int], float] = {}
    total = 0.0
    for name, (size, dtype, axes) in forms.items():
        kind = re.sub(r"\d+", "#", name), dtype, axes
        if kind not in shares:
            with TinygradContext(TRAINING=1, PARALLEL=0, BEAM=0):
                small = Tensor.zeros(*[4] * axes, dtype=dtype, device="PYTHON").contiguous()
                inner = backend.build({name: small}, lr=0.0, weight_decay=0.0, **options)
            held = state_of(inner, small)
            shares[kind] = sum(int(t.nbytes()) for t in held if t.numel() >= small.numel()) / int(small.numel())
        total += shares[kind] * size
    return int(total)


def state_of(inner: Any, parameter: Tensor) -> list[Tensor]:
    """The tensors that an optimizer holds besides a parameter."""
    from tinygrad.nn.state import get_state_dict

    given = inner.state_dict() if hasattr(inner, "state_dict") else get_state_dict(inner, tensor_type=Tensor)
    return [tensor for tensor in given.values() if isinstance(tensor, Tensor) and tensor is not parameter]


# ----------------------------------------------------------------------------------------- before the first step


def size_of(batches: Batches, step: tuple[Rows, ...]) -> int:
    """Tokens of a step, padding included."""
    return sum(batches.make_length(rows) * max(len(rows), batches.batch_size) for rows in step)


def largest_batch(batches: Batches, epoch: int = 0) -> tuple[Rows, bool]:
    """The batch of an epoch with the most tokens, media first among equals, and whether its step adds up several."""

    def weight(rows: Rows) -> tuple[int, int]:
        media = sum(len(found) for row in rows for i in row for found in batches.items[i].sources.values())
        return size_of(batches, (rows,)), media

    found = [(weight(rows), rows, len(step) > 1) for step in batches.epoch(epoch) for rows in step]
    _, rows, several = max(found, key=lambda one: one[0])
    return rows, several


def check_largest(trainer: Trainer) -> None:
    """Raise InputError where the largest step of the epoch that is under way cannot fit.

    A step whose first batch is known needs no more than the square of how many times it is longer: attention's scores
    grow so, all else more slowly. Where that fits, nothing is compiled for the largest before its turn.
    """
    batches, steps = trainer.batches, trainer.optimizer.steps(trainer.model)
    epoch = batches.epoch(trainer.epoch)
    if trainer.ending or not epoch:
        return
    step = epoch[min(trainer.index, len(epoch) - 1)]
    first = CheckedBatch.of(trainer.model, batches.make(step[0]))
    if not steps.serve([first]):
        return
    linked = planned(trainer, first, len(step) > 1)
    rows, several = largest_batch(batches, trainer.epoch)
    longer = size_of(batches, (rows,)) / first.ids.size
    if longer > 1 and linked.bytes * longer**2 > steps.room():
        planned(trainer, CheckedBatch.of(trainer.model, batches.make(rows)), several)


def planned(trainer: Trainer, batch: CheckedBatch, several: bool) -> Pass:
    """The linked programs of a batch. Raises InputError where they do not fit."""
    return trainer.optimizer.steps(trainer.model).pass_of(batch, several, trainer.plan.checkpointing)


# ----------------------------------------------------------------------------------------- a dry run


def estimated(trainer: Trainer) -> Estimate:
    """The estimate of a run that has not begun. It takes steps: the model's weights are others afterwards.

    Raises InputError where the largest step does not fit.
    """
    model, batches, optimizer = trainer.model, trainer.batches, trainer.optimizer
    free = free_memory_bytes(str(model.device))
    rows, several = largest_batch(batches)
    steps, batch = optimizer.steps(model), CheckedBatch.of(model, batches.make(rows))
    began = time.perf_counter()
    activations = planned(trainer, batch, several).bytes if steps.serve([batch]) else None
    planning = time.perf_counter() - began
    epoch = sorted(batches.epoch(0), key=lambda step: size_of(batches, step))
    begun, large = seconds_of(partial(trainer.measure, epoch[-1]))
    again, small = seconds_of(partial(trainer.measure, epoch[0]))
    timed = {size_of(batches, epoch[0]): small, size_of(batches, epoch[-1]): large}
    if activations is not None:
        activations = max(activations, steps.programs.arena.size)
    state = sum(int(t.nbytes()) for t in optimizer.state_dict().values())
    mean = statistics.fmean(between(timed, size_of(batches, step)) for step in epoch)
    lengths = {batches.make_length(rows) for step in epoch for rows in step}
    first = planning + begun - large + mean
    return Estimate(weights_bytes(model), steps.gradient_bytes, state, activations, free, first,
                    max(again - small, 0.0), len(lengths), timed, mean, trainer.total)


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first call, and the median of later ones."""
    times: list[float] = []
    while len(times) < 2 or (sum(times[1:]) < TIMED_SECONDS and len(times) <= MOST_TIMED):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:])


def between(timed: Mapping[int, float], size: int) -> float:
    """A value on the line through the timed sizes."""
    low, high = min(timed), max(timed)
    share = (size - low) / (high - low) if high > low else 0.0
    return timed[low] + share * (timed[high] - timed[low])
