"""What a function launches on a GPU, recorded once and replayed: CUDA graphs.

A step of a small molecule is some hundred small kernels, and starting them from Python or TorchScript
takes ten times as long as running them. A recorded step is started as a whole.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

WARM_UP_CALLS = 5
"""Before the recording: TorchScript looks at its first calls, and compiles during the next two."""


def record(
    function: Callable[[], T], generators: tuple[torch.Generator, ...] = ()
) -> Callable[[], T]:
    """Record a function on the current CUDA device.

    Args:
        function: Without arguments: it reads tensors that stay where they are and that the caller
            changes in place. Nothing in it may depend on values, or wait for the device. It is called
            several times here; what it changes in place it must be able to change anew.
        generators: The random generators on the device that it draws from, if they are not torch's own.

    Returns:
        A function that does the same. What it returns are the same tensors at every call, with new
        values in them.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    # Other threads may go on with what they do.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()

    def replay() -> T:
        graph.replay()
        return result

    return replay
