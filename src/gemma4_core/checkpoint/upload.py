"""Stored bytes to tinygrad tensors: mapped where the CPU can use them as they lie, else copied piece by piece."""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.device import Buffer

from gemma4_core.checkpoint.convert import STORED, convert
from gemma4_core.checkpoint.header import ITEMSIZE, Entry
from gemma4_core.checkpoint.shard import Shard
from gemma4_core.errors import DeviceError
from gemma4_core.formatting import shown

if TYPE_CHECKING:
    from gemma4_core.contracts import Staging

PIECE = 16 << 20
"""Bytes read at a time; small enough that the copy after it reads from the processor's cache."""
READERS = 4
"""Threads that read ahead: copying out of the page cache takes as long as the copy to a GPU's staging memory."""
SYNCHRONIZE_EVERY = 256 << 20
"""Bytes: tinygrad's CUDA device keeps pinned copies of what it was given until it is synchronized."""
ALIGNMENT = 16
"""Bytes: the widest vector that tinygrad's C renderer loads at once is four floats."""
NAMES = {dtypes.bfloat16: "BF16", dtypes.float16: "F16", dtypes.float32: "F32", dtypes.int8: "I8"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
KINDS = STORED | {"I8": np.int8}
"""numpy type of the bits; int8 numbers, which mean nothing without their scales, are never converted."""


def on_cpu(device: str) -> bool:
    """Whether tensors of this device are in this process's memory, at an address that we can choose."""
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
    """Release one tensor's hold on its mapping; dropping the reference is all there is to do."""


def upload_tensor(
    name: str, shard: Shard, entry: Entry, device: str, dtype: Any, upload: Upload | None = None
) -> Tensor:
    """Read a tensor in pieces, convert each to the wanted dtype and copy it to the device, through the device's staging
    memory if it has any."""
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
    if upload is not None:
        upload.fill(buffer, shard, entry, wanted)
        return tensor
    whole = count * max(stored_size, size)
    plain = PlainStaging(device, min(PIECE, whole) if offsets_work(device) else whole)
    with closing(Upload(plain)) as upload:
        upload.fill(buffer, shard, entry, wanted)
    Device[device].synchronize()
    return tensor


class PlainStaging:
    """Ordinary memory in place of a device's :class:`Staging`: tinygrad has read a slot when it returns from copying
    it."""

    def __init__(self, device: str, size: int) -> None:
        self.device, self.pending = device, 0
        self.slots: Sequence[np.ndarray] = [np.empty(size, np.uint8) for _ in range(READERS)]

    def copy(self, slot: int, size: int, buffer: Buffer, offset: int) -> None:
        bits = self.slots[slot][:size].view(KINDS[NAMES[buffer.dtype]])
        copy_in(buffer, offset, bits, buffer.dtype)
        self.pending += size
        if self.pending >= SYNCHRONIZE_EVERY:
            Device[self.device].synchronize()
            self.pending = 0

    def wait(self, slot: int) -> None:
        """Nothing reads it."""


class Upload:
    """Loads tensors through staging memory: threads read files into its slots, which the device is given in order while
    others are read."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.threads = ThreadPoolExecutor(READERS)
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
        """Wait for all copies and free the memory."""
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
