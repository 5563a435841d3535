"""Times in frames, as a person reads them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clock:
    """Turns numbers of frames into times.

    Attributes:
        frame_time: ps between frames; None if unknown, then times stay numbers of frames.
    """

    frame_time: float | None

    def unit(self, frames: float) -> tuple[float, str]:
        """Factor and unit that suit a time of so many frames."""
        if self.frame_time is None:
            return 1.0, "frames"
        picoseconds = abs(frames) * self.frame_time
        for least, factor, unit in ((1e6, 1e-6, "µs"), (1e3, 1e-3, "ns")):
            if picoseconds >= least:
                return self.frame_time * factor, unit
        return self.frame_time, "ps"

    def text(self, frames: float, error: float | None = None) -> str:
        """A time with three digits and its standard error, such as "229 ± 15 ps"."""
        if not np.isfinite(frames):
            return "–"
        factor, unit = self.unit(frames)
        shown = f"{factor * frames:.3g}"
        if abs(factor * frames) >= 1000:
            shown = f"{factor * frames:,.0f}"
        if error is not None and np.isfinite(error):
            shown += f" ± {factor * error:.2g}"
        return f"{shown} {unit}"

    def picoseconds(self, frames: float) -> float | None:
        """ps, None where that is unknown."""
        known = self.frame_time is not None and np.isfinite(frames)
        return float(frames * self.frame_time) if known and self.frame_time else None
