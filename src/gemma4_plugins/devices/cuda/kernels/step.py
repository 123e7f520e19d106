"""Steps that the persistent kernel and the chunk kernels serve: a token is one launch, read late from host memory."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.errors import DeviceError
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.steps import Hidden, Outcome
from gemma4_plugins.devices.cuda.kernels import launch
from gemma4_plugins.devices.cuda.kernels.choose import Chooser, Drawing
from gemma4_plugins.devices.cuda.kernels.chunk import CHUNK, fits
from gemma4_plugins.devices.cuda.kernels.plan import HISTORY, Machine, Plan, make_plan, unsupported
from gemma4_plugins.devices.cuda.kernels.prefill import Chunks
from gemma4_plugins.devices.cuda.kernels.sources import ENTRY, device_source, expand_source, step_source
from gemma4_plugins.devices.cuda.kernels.table import address_table, cache_addresses, storage_of

if TYPE_CHECKING:
    from gemma4_core.contracts.rows import Rows, SamplingRows
    from gemma4_core.contracts.steps import DecoderView, Slots, StepResult

AHEAD = 2
"""Steps that may be issued before the first of them is read."""
PATIENCE = 60.0
"""Seconds that a step may take before it is given up."""


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


def step(view: DecoderView, slots: Slots) -> CudaStep | None:
    """``Operations.step`` on CUDA: None where the kernel does not serve the model or not all its blocks would be
    resident at once."""
    kind = served(view)
    if kind is None or (kind == "int8" and not widens()):  # prompts are widened
        return None
    plan = make_plan(view.text.config, machine(), kind == "int8")
    if plan is None:
        return None
    kernel = compiled(device_source(step_source(plan)), plan.threads, plan.shared_bytes)
    return CudaStep(view, slots, plan, kernel) if kernel.resident_blocks() >= 1 else None


def served(view: DecoderView) -> str | None:
    """``bf16`` or ``int8`` where weights and sizes are such that the kernel reads them in place, else None."""
    router = lambda name: name.endswith("router.proj.weight")  # noqa: E731
    kinds = {storage_of(place) for name, place in view.places.items() if not router(name)}
    good = (
        view.dtype == dtypes.bfloat16
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


@dataclass(frozen=True)
class SlotAddresses:
    """What the kernels read of one slot."""

    table: Tensor
    """The persistent kernel's table, see ``address_table``."""
    table_at: int
    caches: tuple[ctypes.c_uint64, ...]
    """Each layer's keys and values."""


class Place:
    """Where a step leaves its choice."""

    def __init__(self, device: str) -> None:
        make = lambda dtype: Tensor.zeros(1, dtype=dtype, device=device).contiguous().realize()  # noqa: E731
        self.ids, self.logprob = make(dtypes.int32), make(dtypes.float32)
        self.at = (launch.address(self.ids), launch.address(self.logprob))
        self.logits: Tensor | None = None
        """fp32 ``[1, V]``, made when first wanted."""
        self.logits_at = 0

    def with_logits(self, vocabulary: int) -> int:
        """The address of its logits."""
        if self.logits is None:
            device = self.ids.device
            self.logits = Tensor.zeros(1, vocabulary, dtype=dtypes.float32, device=device).contiguous().realize()
            self.logits_at = launch.address(self.logits)
        return self.logits_at


class Issued:
    """The ``StepResult`` of one row where the device will leave it. What is on the device stays for some further steps
    (``AHEAD`` and one more), what ``read`` gives for ``HISTORY``."""

    __slots__ = ("ids", "logits", "sequence", "step")
    hidden = None

    def __init__(self, step: CudaStep, ids: Tensor, logits: Tensor | None) -> None:
        self.step, self.sequence, self.ids, self.logits = step, step.sequence, ids, logits

    def read(self) -> list[tuple[int, float]]:
        """The token's id and log-probability, in a list of one; waits for these numbers alone."""
        return [self.step.read(self.sequence)]


class CudaStep:
    """Launches the kernels; keeps what they refer to alive."""

    def __init__(self, view: DecoderView, slots: Slots, plan: Plan, kernel: launch.Kernel) -> None:
        self.view, self.slots, self.plan, self.kernel = view, slots, plan, kernel
        self.chunked = fits(view.text.config)
        self.max_rows = CHUNK if self.chunked else 1
        self.most_ahead = AHEAD if view.ple_host is None else 0
        self.ahead = self.most_ahead
        """As the last call has it: none where a captured graph chose, since a graph's next run overwrites its results."""
        self.rotation = view.text.rotation_table(slots.capacity + view.chunk)
        # what the tables point to must stay, whatever becomes of the model
        self.references: list[Any] = [slots.layers, [view.suppressed, *held_tensors(view)]]
        self.used: tuple[Any, ...] = ()
        """What the last launch reads besides."""
        self.scratch = self._zeros(plan.scratch_packets, 2, dtype=dtypes.uint32)
        self.scratch_at = launch.address(self.scratch)
        self.places = [Place(view.device) for _ in range(AHEAD + 2)]
        self.place_of = {id(place.ids): place for place in self.places}
        self.history = launch.HostBuffer((HISTORY, 4), np.uint32)
        self.given = launch.HostBuffer((HISTORY,), np.int32)
        """Ids that come from the host; the kernel reads them there."""
        self.sequence, self.launched, self.taken = 0, 0, 0
        self.chooser: Chooser | None = None
        self._addresses: dict[int, SlotAddresses] = {}
        self._chunks: Chunks | None = None
        self._way: tuple[SamplingRows | None, bool, Drawing | None] = (None, False, None)

    def _zeros(self, *shape: int, dtype: Any) -> Tensor:
        return Tensor.zeros(*shape, dtype=dtype, device=self.view.device).contiguous().realize()

    # ------------------------------------------------------------------------------------------- calls

    def serves(self, rows: Rows, sampling: SamplingRows | None) -> bool:
        """See ``Step``: a row, or a chunk of one slot."""
        if len(rows.slot) == 1 and rows.media is None:
            # hidden states are the chunk kernels', and a row that is wanted without choosing is wanted for its state
            return self.chunked or sampling is not None or not len(rows.wanted)
        return self.chunked and rows.count <= CHUNK and len(rows.runs) == 1

    def __call__(
        self, rows: Rows, sampling: SamplingRows | None, *, hidden: bool = False, logits: bool = False
    ) -> StepResult:
        """See ``Step``."""
        count, wanted = len(rows.slot), rows.wanted
        slot, start = int(rows.slot[0]), int(rows.position[0])
        if count == 1 and len(wanted) == 1 and sampling is not None and rows.media is None and not hidden:
            return self._row(rows.ids, slot, start, rows, sampling, logits)
        last = len(wanted) == 1 and int(wanted[0]) == count - 1
        # the persistent kernel takes ids: a soft token at the end goes with the rows before it
        soft = sampling is not None and rows.media is not None and bool(rows.media.soft[-1] >= 0)
        if len(wanted) and (hidden or soft or not last):
            return self._every(rows, slot, sampling, hidden)
        ids = rows.ids.numpy() if isinstance(rows.ids, Tensor) else rows.ids
        if not len(wanted) or sampling is None:
            self._body(rows, ids, slot, count)
            return Hidden(None)
        self._body(rows, ids, slot, count - 1)
        return self._row(ids[-1:], slot, start + count - 1, rows, sampling, logits)

    def _body(self, rows: Rows, ids: np.ndarray, slot: int, count: int) -> None:
        """The first rows, of which only keys and values are wanted."""
        if self.chunked and count:
            self._chunk_kernels().run(ids, rows.media, int(rows.position[0]), count, self._slot(slot).caches)
        elif count:
            self._launch(slot, self._token(ids), int(rows.position[0]), (0, 0), 0)

    def _every(self, rows: Rows, slot: int, sampling: SamplingRows | None, hidden: bool) -> StepResult:
        """All layers for all rows, and the wanted rows' choices from their final hidden states."""
        ids = rows.ids.numpy() if isinstance(rows.ids, Tensor) else rows.ids
        start, caches = int(rows.position[0]), self._slot(slot).caches
        found = self._chunk_kernels().run(ids, rows.media, start, rows.count, caches, every=True)
        assert found is not None
        if len(rows.wanted) != rows.count:
            found = found[upload(rows.wanted.astype(np.int32), self.view.device)].contiguous().realize()
        if sampling is None:
            return Hidden(found)
        self.ahead = 0
        outcome = self.view.finish(found, rows, sampling)
        return replace(outcome, hidden=found) if hidden and isinstance(outcome, Outcome) else outcome

    def _row(
        self, ids: np.ndarray | Tensor, slot: int, position: int, rows: Rows, sampling: SamplingRows, logits: bool
    ) -> StepResult:
        """One row through the persistent kernel, and its choice."""
        plain, drawing = self._choosing(sampling)
        self.sequence = self.sequence + 1 & 0xFFFFFFFF
        place = self.places[self.sequence % len(self.places)]
        token = self._token(ids)
        self.ahead = self.most_ahead
        if plain:
            self._launch(slot, token, position, place.at, place.with_logits(self.view.vocab) if logits else 0)
            return Issued(self, place.ids, place.logits if logits else None)
        made = place.with_logits(self.view.vocab)
        self._launch(slot, token, position, (0, 0), made)
        if drawing is None or self.chooser is None:
            self.ahead = 0
            assert place.logits is not None
            return self.view.choose(place.logits, rows, sampling)
        self.chooser.launch(made, position + 1, drawing, slot, place.at, self.history.address, self.sequence)
        return Issued(self, place.ids, place.logits if logits else None)

    # ------------------------------------------------------------------------------------------- what calls read

    def _choosing(self, sampling: SamplingRows) -> tuple[bool, Drawing | None]:
        """Whether a row takes its largest logit, else how the kernel draws it; None where a captured graph chooses."""
        known, plain, drawing = self._way
        if known is sampling:
            return plain, drawing
        plain, drawing = sampling.plain, None
        if not plain and sampling.simple:
            if self.chooser is None and Chooser.serves(self.view.vocab):
                self.chooser = Chooser(self.view.vocab, self.view.device, self.view.suppressed)
            drawing = Drawing.of(sampling) if self.chooser is not None else None
        self._way = (sampling, plain, drawing)
        return plain, drawing

    def _slot(self, slot: int) -> SlotAddresses:
        """A slot's addresses, made when first used."""
        found = self._addresses.get(slot)
        if found is None:
            text = self.view.text
            caches = cache_addresses(text, self.slots, slot, launch.address)
            numbers = address_table(text, self.slots, caches, self.rotation, self.view.suppressed, launch.address)
            table = upload(numbers, self.view.device)
            found = SlotAddresses(table, launch.address(table), tuple(map(ctypes.c_uint64, caches)))
            self._addresses[slot] = found
        return found

    def _chunk_kernels(self) -> Chunks:
        if self._chunks is None:
            if not self.chunked:
                raise DeviceError("this device's shared memory is too small for the chunk kernels; GEMMA4_KERNELS=portable "
                                  "runs without them")  # fmt: skip
            self._chunks = Chunks(self.view, self.slots, self.rotation)
        return self._chunks

    def _token(self, ids: np.ndarray | Tensor) -> tuple[int, np.ndarray | Tensor]:
        """Where the kernel finds an id, and the id."""
        if isinstance(ids, Tensor):
            place = self.place_of.get(id(ids))
            if place is not None:
                return place.at[0], ids
            if launch.is_plain(ids):
                return launch.address(ids), ids
            ids = ids.numpy()
        number = self.taken % HISTORY
        if self.taken and number == 0:
            self._check()  # waits: no kernel that is still to run may find a later one's id
        self.taken += 1
        self.given.array[number] = ids[0]
        return self.given.address + 4 * number, ids

    # ------------------------------------------------------------------------------------------- launching and reading

    def _launch(
        self, slot: int, token: tuple[int, np.ndarray | Tensor], position: int, outputs: tuple[int, int], logits: int
    ) -> None:
        if (self.launched + 1) * self.plan.tags >= 1 << 32:
            # tags come round: no old packet may carry one that is used again
            self.scratch.assign(self.scratch.zeros_like()).realize()
            self.launched = 0
        tag = 1 + self.launched * self.plan.tags
        self.launched += 1
        at, ids = token
        rows = self._ple_rows(ids) if self.view.ple_host is not None else None
        self.used = (ids, rows)
        pointers = (self._slot(slot).table_at, self.scratch_at, at, *outputs, logits,
                    0 if rows is None else launch.address(rows), self.history.address)  # fmt: skip
        numbers = (position, tag, self.sequence)
        self.kernel.launch(self.plan.blocks, [*map(ctypes.c_uint64, pointers), *map(ctypes.c_uint32, numbers)])

    def _ple_rows(self, ids: np.ndarray | Tensor) -> Tensor:
        host = self.view.ple_host
        assert host is not None
        return host.rows(np.asarray(ids.numpy() if isinstance(ids, Tensor) else ids, np.int32).reshape(1, 1))

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
