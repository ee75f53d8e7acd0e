"""Freed memory stays with a process while it trains on a CPU.

By default glibc hands large freed blocks back to the kernel at once, so that every step asks for
its activations again, page by page: 240,000 page faults in a step of the small hybrid, a fifth of
its time (``benchmarks/allocator.py``). Where the C library has no such options, as on macOS,
nothing changes. No torch, no ray.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt(3): names and numbers of <malloc.h>
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST_INT = 2**31 - 1
# Threads other than the first have heaps of 64 MiB, which the trim threshold does not keep: one is
# unmapped as soon as it is empty, unless what is free before it is less than the padding.
HEAP_BYTES = 64 << 20


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Within it, memory that was freed is used again; on leaving, what is free goes back.

    ``device`` other than ``cpu``: nothing. The options are the process's and cannot be read, so
    they stay. The process's peak memory grows, by a sixth at most in what was measured, for blocks
    no longer fit exactly.
    """
    libc = ctypes.CDLL(None)
    if device != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    for option, value in (
        (MMAP_THRESHOLD, LARGEST_INT),
        (TRIM_THRESHOLD, LARGEST_INT),
        (TOP_PAD, HEAP_BYTES),
    ):
        libc.mallopt(option, value)
    try:
        yield
    finally:
        libc.malloc_trim(0)
