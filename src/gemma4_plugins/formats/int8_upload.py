"""int8 numbers of a mapped file to a device."""

from __future__ import annotations

import weakref

import numpy as np
from tinygrad import Device, Tensor, dtypes

from gemma4_core.checkpoint.upload import ALIGNMENT, PIECE, copy_in, offsets_work, on_cpu, one_line
from gemma4_core.config.files import shown
from gemma4_core.errors import DeviceError


def upload_int8(name: str, bits: np.ndarray, device: str) -> Tensor:
    """A realized int8 tensor. On tinygrad's CPU device it lies on the mapped file where its place there allows it."""
    if on_cpu(device) and bits.ctypes.data % ALIGNMENT == 0 and bits.size:
        tensor = Tensor.from_blob(bits.ctypes.data, bits.shape, dtype=dtypes.int8, device=device)
        # the file stays mapped until the last tensor on it is gone
        weakref.finalize(tensor.uop.buffer, kept, bits).atexit = False
        return tensor
    try:
        tensor = Tensor.empty(*bits.shape, dtype=dtypes.int8, device=device)
        buffer = tensor.uop.buffer.ensure_allocated()
    except MemoryError as fault:
        need = f"{bits.nbytes / 1e9:.2f} GB"
        raise DeviceError(f"{device} has no room for the {need} of {shown(name)}: {one_line(fault)}") from fault
    flat = bits.reshape(-1)
    step = PIECE if offsets_work(device) else flat.size
    for first in range(0, flat.size, step):
        copy_in(buffer, first, flat[first : first + step], dtypes.int8)
        # devices keep their own copy of what they were given until they are synchronized
        Device[device].synchronize()
    return tensor


def kept(bits: np.ndarray) -> None:
    """The end of one tensor's hold on its mapping; dropping the reference is all there is to do."""
