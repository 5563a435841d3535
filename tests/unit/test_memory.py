"""Freed memory stays with the process instead of going back to the system after every step."""

import os
import platform
import subprocess
import sys

import pytest

# The heap's end is looked at, not page faults: some sandboxes do not count those. The blocks come from
# malloc itself: tensors come with small blocks, and one of those behind the rest keeps the heap as it is.
PROGRAM = """
import ctypes
import torch
from forcefield.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t

{call}
ends, blocks = [0] * 60, [0] * 6
for step in range(30):
    for k in range(6):
        blocks[k] = libc.malloc(8_000_000)
    ends[2 * step] = libc.sbrk(0)
    for k in range(6):
        libc.free(blocks[k])
    ends[2 * step + 1] = libc.sbrk(0)
print(max(ends[20:]) - min(ends[20:]))
"""


def heap_moves_by(call: str) -> int:
    """Bytes by which the heap shrinks and grows in steps that take and free six blocks of 8 MB."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, check=True, env=own
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do otherwise")
def test_memory_of_one_step_is_there_in_the_next():
    assert heap_moves_by("pass") > 4_000_000
    assert heap_moves_by("keep_freed_memory()") == 0
