"""Freed memory stays with the process: steps of the same size meet no page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from forcefield.memory import keep_freed_memory

{call}
def step():
    return [torch.ones(1_000_000) for _ in range(6)]
for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call: str) -> int:
    program = PROGRAM.format(call=call)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do otherwise")
def test_steps_of_the_same_size_meet_no_page_faults():
    assert page_faults("pass") > 1000
    assert page_faults("keep_freed_memory()") < 100
