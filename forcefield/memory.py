"""Memory that is freed in one step and needed again in the next."""

from functools import cache

import torch

LARGEST_RAISE = 30 * 2**20
"""Bytes. glibc adapts its thresholds to freed blocks of up to 32 MiB."""


@cache
def keep_freed_memory() -> None:
    """Have the C library keep freed memory for this process instead of giving it back to the system.

    glibc returns what is free at the end of its heap once that is more than twice the largest block
    it has seen freed, and gets it back page by page: an evaluation of aspirin met 750 page faults,
    a quarter of its time. One large block, never touched, raises that bound for good. Other C libraries
    do not mind.
    """
    torch.empty(LARGEST_RAISE, dtype=torch.uint8)
