"""Stored bytes to tinygrad tensors: mapped where the CPU can use them as they lie, else copied piece by piece."""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.device import Buffer

from gemma4_core.checkpoint.convert import STORED, convert
from gemma4_core.checkpoint.files import Shard
from gemma4_core.checkpoint.header import ITEMSIZE, Entry
from gemma4_core.config.files import shown
from gemma4_core.errors import DeviceError

if TYPE_CHECKING:
    from gemma4_core.descriptions import Staging

PIECE = 16 << 20
"""Bytes read at a time; small enough that the copy after it reads from the processor's cache."""
READERS = 3
"""Threads that read ahead: copying out of the page cache takes as long as the copy to a GPU's staging memory."""
STAGED_READERS = 4
"""The same where they read into memory that the device copies from."""
SYNCHRONIZE_EVERY = 256 << 20
"""Bytes: tinygrad's CUDA device keeps pinned copies of what it was given until it is synchronized."""
ALIGNMENT = 16
"""Bytes: the widest vector that tinygrad's C renderer loads at once is four floats."""
NAMES = {dtypes.bfloat16: "BF16", dtypes.float16: "F16", dtypes.float32: "F32", dtypes.int8: "I8"}
KINDS = STORED | {"I8": np.int8}
"""numpy type of the bits; int8 numbers, which are no weights without their scales, are only ever taken as they are."""


def on_cpu(device: str) -> bool:
    """Whether tensors of this device lie in this process's memory at an address of our choosing."""
    return device.split(":")[0].upper() == "CPU"


def map_tensor(shard: Shard, entry: Entry, device: str, dtype: Any) -> Tensor | None:
    """A tensor on the mapped file without a copy; None where device, type or alignment do not allow it."""
    if not on_cpu(device) or NAMES.get(dtype) != entry.dtype or entry.start % ALIGNMENT or not entry.nbytes:
        return None
    mapping = shard.mapping
    address = np.frombuffer(mapping, np.uint8, count=1).ctypes.data + entry.start
    tensor = Tensor.from_blob(address, entry.shape, dtype=dtype, device=device)
    # the file stays mapped until the last tensor on it is gone
    weakref.finalize(tensor.uop.buffer, released, mapping).atexit = False
    return tensor


def released(mapping: mmap.mmap) -> None:
    """The end of one tensor's hold on its mapping; dropping the reference is all there is to do."""


def upload_tensor(
    name: str, shard: Shard, entry: Entry, device: str, dtype: Any, staged: StagedUpload | None = None
) -> Tensor:
    """Read a tensor in pieces, convert each to the wanted dtype, copy it to the device; through its staging if it has
    some."""
    wanted = NAMES[dtype]
    count, stored_size, size = math.prod(entry.shape), ITEMSIZE[entry.dtype], ITEMSIZE[wanted]
    try:
        tensor = Tensor.empty(*entry.shape, dtype=dtype, device=device)
        if not count:
            return tensor
        buffer = tensor.uop.buffer.ensure_allocated()
    except MemoryError as fault:
        need = f"{count * size / 1e9:.2f} GB"
        raise DeviceError(f"{device} has no room for the {need} of {shown(name)}: {one_line(fault)}") from fault
    if staged is not None:
        staged.fill(buffer, shard, entry, wanted)
        return tensor
    step = PIECE // stored_size if offsets_work(device) else count
    first = pending = 0
    for bits in pieces(shard, entry, step, wanted):
        copy_in(buffer, first * size, bits, dtype)
        first += bits.size
        pending += bits.nbytes
        if pending >= SYNCHRONIZE_EVERY:
            Device[device].synchronize()
            pending = 0
    Device[device].synchronize()
    return tensor


class StagedUpload:
    """Loads tensors through a device's :class:`Staging`: threads read files straight into its slots, and the device
    copies from there while others are read."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.threads = ThreadPoolExecutor(STAGED_READERS)
        self.next = 0

    def fill(self, buffer: Buffer, shard: Shard, entry: Entry, wanted: str) -> None:
        """Queue the copy of a tensor's numbers, as bits of the wanted dtype, into a buffer of the device."""
        stored, size, count = ITEMSIZE[entry.dtype], ITEMSIZE[wanted], math.prod(entry.shape)
        step = self.staging.slots[0].nbytes // max(stored, size)
        reading: deque[tuple[int, int, int, Future[None]]] = deque()
        for first in range(0, count, step):
            if len(reading) == len(self.staging.slots):
                self._send(buffer, *reading.popleft())
            slot, length = self.next, min(step, count - first)
            self.next = (self.next + 1) % len(self.staging.slots)
            self.staging.wait(slot)
            place = self.staging.slots[slot]
            begin = entry.start + first * stored
            read = self.threads.submit(read_bits, shard, begin, entry.dtype, wanted, length, place)
            reading.append((slot, length * size, first * size, read))
        while reading:
            self._send(buffer, *reading.popleft())

    def _send(self, buffer: Buffer, slot: int, size: int, offset: int, read: Future[None]) -> None:
        read.result()
        self.staging.copy(slot, size, buffer, offset)

    def close(self) -> None:
        """Wait for all copies and let the memory go."""
        for slot in range(len(self.staging.slots)):
            self.staging.wait(slot)
        self.threads.shutdown()


def read_bits(shard: Shard, begin: int, stored: str, wanted: str, count: int, place: np.ndarray) -> None:
    """Numbers of a file as bits of the wanted dtype at the beginning of ``place``, uint8."""
    bits = place[: count * ITEMSIZE[stored]].view(KINDS[stored])
    shard.read(begin, bits)
    converted = convert(bits, stored, wanted)
    if converted is not bits:
        place[: converted.nbytes] = np.ascontiguousarray(converted).view(np.uint8)


def pieces(shard: Shard, entry: Entry, step: int, wanted: str) -> Iterator[np.ndarray]:
    """A tensor's numbers in pieces of ``step`` as bits of the wanted dtype, in order, while other threads read and
    convert the next ones. A piece is overwritten once the one after it is asked for."""
    kind, size, count = KINDS[entry.dtype], ITEMSIZE[entry.dtype], math.prod(entry.shape)
    spans = [(first, min(step, count - first)) for first in range(0, count, step)]
    staging = [np.empty(min(step, count), kind) for _ in spans[: READERS + 1]]

    def read(number: int) -> np.ndarray:
        first, length = spans[number]
        piece = staging[number % len(staging)][:length]
        shard.read(entry.start + first * size, piece)
        return convert(piece, entry.dtype, wanted)

    if len(spans) == 1:
        yield read(0)
        return
    with ThreadPoolExecutor(READERS) as threads:
        waiting = deque(threads.submit(read, number) for number in range(min(READERS, len(spans))))
        for number in range(READERS, len(spans) + READERS):
            bits = waiting.popleft().result()
            if number < len(spans):
                waiting.append(threads.submit(read, number))
            yield bits


def offsets_work(device: str) -> bool:
    """Whether the device can write into a part of a buffer; OpenCL and WebGPU take it whole."""
    return device.split(":")[0].upper() in ("CPU", "CUDA", "NV", "AMD", "HIP", "METAL", "PYTHON", "NULL")


def copy_in(buffer: Buffer, offset: int, bits: np.ndarray, dtype: Any) -> None:
    """Copy host bits into a device buffer at a byte offset. Goes through tinygrad's PYTHON device, which is plain
    memory: its CPU device would ask for a compiler."""
    whole = offset == 0 and bits.nbytes == buffer.nbytes
    target = buffer if whole else buffer.view(bits.size, dtype, offset).ensure_allocated()
    memory = np.ascontiguousarray(bits).data.cast("B")
    target.copy_from(Buffer("PYTHON", bits.size, dtype, opaque=memory))


def release_staging(device: str) -> None:
    """Free the pinned copies that a device's allocator keeps for reuse."""
    opened = Device[device]
    opened.synchronize()
    if hasattr(opened.allocator, "free_cache"):
        opened.allocator.free_cache()


def one_line(fault: BaseException) -> str:
    """An exception's text without line breaks, cut."""
    return " ".join(str(fault).split())[:200]
