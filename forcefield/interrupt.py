"""Ctrl-C and SIGTERM as a request that a long run looks at between two steps."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Notes that SIGINT or SIGTERM has arrived.

    Args:
        after: What is finished first, in the message.

    Attributes:
        requested: Whether a signal has arrived.
    """

    def __init__(self, after: str = "this step") -> None:
        self.after = after
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside this block; a second one aborts as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python allows signal handlers in the main thread only.
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        message = f"\nStopping after {self.after} (once more to abort) ..."
        print(message, file=sys.stderr, flush=True)
