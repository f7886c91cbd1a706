"""How the process holds on to memory that tensors have freed."""

from __future__ import annotations

import ctypes
import functools

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc's malloc keep large freed blocks for the next tensors, instead of giving them back to the system each time.

    A denoiser on the CPU makes and drops hundreds of tensors of some MB a call, and to have their pages cleared anew takes up to
    a fifth of its time. Returns whether it could be done: elsewhere than under glibc nothing happens.
    """
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (AttributeError, OSError, TypeError):
        return False
