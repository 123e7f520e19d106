"""C source as machine code in this process: compiled by tinygrad's compiler, whose disk cache keeps the object."""

from __future__ import annotations

import ctypes
import mmap
import platform

from tinygrad.runtime.support.compiler_cpu import ClangCompiler
from tinygrad.runtime.support.elf import jit_loader


def load(source: str) -> int:
    """The address of the first function of a C source, which stays for the life of the process.

    The cache is keyed by the source alone, so that what the code depends on beside it must be said in it. Raises
    Exception where it cannot be compiled or loaded.
    """
    arch = "x86_64" if platform.machine() in ("x86_64", "AMD64") else "arm64"
    image = bytes(jit_loader(ClangCompiler([arch, "native"]).compile_cached(source)))
    address = map_memory(len(image))
    ctypes.memmove(address, image, len(image))
    runnable = mmap.PROT_READ | mmap.PROT_EXEC
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(len(image)), runnable):
        raise OSError("memory cannot be made executable")
    return address


def map_memory(size: int) -> int:
    """The address of private zeroed memory that stays for the life of the process: a thread may still use it when the
    interpreter ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, ctypes.c_size_t(size), protection, flags, -1, ctypes.c_long(0))
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap failed")
    return int(address)
