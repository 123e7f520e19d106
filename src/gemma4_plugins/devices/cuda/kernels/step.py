"""The decode step that the persistent kernel serves: one launch per token, tokens read late from host memory."""

from __future__ import annotations

import ctypes
import time
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.errors import DeviceError
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.sampling import SamplingState
from gemma4_core.ops.steps import PrefillResult
from gemma4_plugins.devices.cuda.kernels import launch
from gemma4_plugins.devices.cuda.kernels.choose import Chooser
from gemma4_plugins.devices.cuda.kernels.plan import HISTORY, Machine, Plan, make_plan, unsupported
from gemma4_plugins.devices.cuda.kernels.sources import ENTRY, device_source, expand_source, step_source
from gemma4_plugins.devices.cuda.kernels.table import address_table, storage_of

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import CacheBuffers, DecoderView, DecodeStep

AHEAD = 2
"""Steps that may be issued before the first of them is read."""
PATIENCE = 60.0
"""Seconds that a step may take before it is given up."""


class Issued(tuple[Tensor, Tensor]):
    """Token and log-probability where the device will leave them; ``read`` waits for these numbers alone."""

    step: CudaStep
    sequence: int

    def read(self) -> tuple[int, float]:
        """The token's id and log-probability."""
        return self.step.read(self.sequence)


@lru_cache(8)
def compiled(source: str, threads: int, shared_bytes: int) -> launch.Kernel:
    """The kernel of a source, cached: a model needs it again for each cache size that it returns to."""
    return launch.Kernel(source, ENTRY, threads, shared_bytes, launch.features())


@cache
def widens() -> bool:
    """Whether int8 numbers become bf16 on this device as they should: all 256 of them, by the kernels' own means."""
    numbers = np.arange(-128, 128, dtype=np.int8)
    given = upload(numbers, launch.DEVICE)
    made = Tensor.zeros(256, dtype=dtypes.bfloat16, device=launch.DEVICE).contiguous().realize()
    values = (ctypes.c_uint64(launch.address(given)), ctypes.c_uint64(launch.address(made)), ctypes.c_uint64(256))
    launch.Kernel(expand_source(), "expand", 256).launch(1, values)
    return bool((made.float().numpy() == numbers).all())


def machine() -> Machine:
    """The current device."""
    blocks, shared = map(launch.attribute, ("MULTIPROCESSOR_COUNT", "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"))
    return Machine(blocks, shared, moves_registers=launch.features() == "a")


def decode_step(view: DecoderView, storage: CacheBuffers, sampled: bool) -> DecodeStep | None:
    """The step for these buffers, or None where the kernel does not serve the model or not all its blocks would be
    resident at once."""
    kind = served(view, storage)
    if kind is None or (kind == "int8" and not widens()):  # prompts, which end in this step, are widened
        return None
    plan = make_plan(view.text.config, machine(), kind == "int8")
    if plan is None:
        return None
    kernel = compiled(device_source(step_source(plan)), plan.threads, plan.shared_bytes)
    if kernel.resident_blocks() < 1:
        return None
    return CudaStep(view, storage, plan, kernel, sampled)


def served(view: DecoderView, storage: CacheBuffers) -> str | None:
    """``bf16`` or ``int8`` where weights, sizes and batch are such that the kernel reads them in place, else None."""
    router = lambda name: name.endswith("router.proj.weight")  # noqa: E731
    kinds = {storage_of(place) for name, place in view.places.items() if not router(name)}
    good = (
        storage.batch == 1
        and view.dtype == dtypes.bfloat16
        and len(kinds) == 1
        and None not in kinds
        and all(storage_of(place) == "bf16" for name, place in view.places.items() if router(name))
        and unsupported(view.text.config, "int8" in kinds) is None
        and all(t.dtype == dtypes.bfloat16 for t in view.tensors.values())
        and all(launch.is_plain(t) for t in held_tensors(view))
    )
    return kinds.pop() if good else None


def held_tensors(view: DecoderView) -> list[Tensor]:
    """Every tensor of the text model."""
    return [*(t for place in view.places.values() for t in place.matrix.parts().values()), *view.tensors.values()]


class CudaStep:
    """Launches the kernel; keeps what it refers to alive."""

    ahead: int

    def __init__(self, view: DecoderView, storage: CacheBuffers, plan: Plan, kernel: launch.Kernel, sampled: bool) -> None:
        self.view, self.plan, self.kernel, self.sampled = view, plan, kernel, sampled
        drawn = sampled and Chooser.serves(view.vocab)
        self.chooser = Chooser(view.vocab, view.device, view.suppressed) if drawn else None
        self.ahead = 0 if (sampled and not drawn) or view.ple_host is not None else AHEAD
        rotation = view.text.rotation_table(storage.capacity + view.chunk)
        # what the table points to must stay, whatever becomes of the model
        self.references: list[Any] = [storage.layers, rotation, [view.suppressed, *held_tensors(view)]]
        table = address_table(view.text, storage, rotation, view.suppressed, launch.address)
        self.table = upload(table, view.device)
        self.scratch = self._zeros(plan.scratch_packets, 2, dtype=dtypes.uint32)
        self.fixed = (launch.address(self.table), launch.address(self.scratch))
        self.logits = self._zeros(1, view.vocab, dtype=dtypes.float32) if sampled else None
        self.outputs = [
            (self._zeros(1, 1, dtype=dtypes.int32), self._zeros(1, 1, dtype=dtypes.float32)) for _ in range(AHEAD + 2)
        ]
        self.history = launch.HostBuffer((HISTORY, 4), np.uint32)
        self.sequence, self.launched = 0, 0

    def _zeros(self, *shape: int, dtype: Any) -> Tensor:
        return Tensor.zeros(*shape, dtype=dtype, device=self.view.device).contiguous().realize()

    def __call__(self, token: Tensor, position: int, state: SamplingState | None) -> tuple[Tensor, Tensor]:
        outputs = self._next_outputs()
        if self.sampled and state is not None:
            assert self.logits is not None
            self._launch(token, position, None, self.logits)
            if self.chooser is None:
                return self.view.choose(self.logits, position + 1, state)
            self.chooser.launch(self.logits, position + 1, state, outputs, self.history.address, self.sequence)
        else:
            self._launch(token, position, outputs, None)
        issued = Issued(outputs)
        issued.step, issued.sequence = self, self.sequence
        return issued

    def _next_outputs(self) -> tuple[Tensor, Tensor]:
        """Count on, and where the token of that number goes."""
        self.sequence = self.sequence + 1 & 0xFFFFFFFF
        return self.outputs[self.sequence % len(self.outputs)]

    def finish(self, token: Tensor, position: int) -> PrefillResult:
        """Run a prompt's last token."""
        if self.logits is None:
            self.logits = self._zeros(1, self.view.vocab, dtype=dtypes.float32)
        self._launch(token, position, self.outputs[0], self.logits)
        return PrefillResult(self.logits, *self.outputs[0], self.draw)

    def draw(self, position: int, state: SamplingState) -> tuple[Tensor, Tensor]:
        """The token at a position, drawn from the logits that are there."""
        assert self.logits is not None
        if self.chooser is None:
            if not Chooser.serves(self.view.vocab):
                return self.view.choose(self.logits, position, state)
            self.chooser = Chooser(self.view.vocab, self.view.device, self.view.suppressed)
        outputs = self._next_outputs()
        self.chooser.launch(self.logits, position, state, outputs, self.history.address, self.sequence)
        return outputs

    def _launch(
        self, token: Tensor, position: int, outputs: tuple[Tensor, Tensor] | None, logits: Tensor | None
    ) -> None:
        if (self.launched + 1) * self.plan.tags >= 1 << 32:
            # tags come round: no old packet may carry one that is used again
            self.scratch.assign(self.scratch.zeros_like()).realize()
            self.launched = 0
        tag = 1 + self.launched * self.plan.tags
        self.launched += 1
        host = self.view.ple_host
        rows = host.rows(token.numpy()) if host is not None else None
        self.references[3:] = [token, rows]
        at = launch.address
        pointers = [
            *self.fixed, at(token), *(map(at, outputs) if outputs is not None else (0, 0)),
            0 if logits is None else at(logits), 0 if rows is None else at(rows), self.history.address,
        ]  # fmt: skip
        numbers = (position, tag, self.sequence)
        self.kernel.launch(self.plan.blocks, [*map(ctypes.c_uint64, pointers), *map(ctypes.c_uint32, numbers)])

    def read(self, sequence: int) -> tuple[int, float]:
        """What the step of this number chose. Raises DeviceError where it failed."""
        slot = self.history.array[sequence % HISTORY]
        began = time.perf_counter()
        while int(slot[2]) != sequence:
            time.sleep(20e-6)
            if time.perf_counter() - began > PATIENCE:
                raise DeviceError(
                    f"the decode kernel gave no token within {PATIENCE:.0f} s; GEMMA4_KERNELS=portable runs without it"
                )
            if time.perf_counter() - began > 1.0:
                self._check()
        return int(slot[0]), float(slot[1:2].view(np.float32)[0])

    def _check(self) -> None:
        try:
            launch.wait()
        except RuntimeError as error:
            raise DeviceError(f"the decode kernel failed: {error}; GEMMA4_KERNELS=portable runs without it") from None
