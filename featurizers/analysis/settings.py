"""What a person chooses for an analysis."""

import re
from dataclasses import dataclass
from typing import get_args

from featurizers.analysis.methods import Method
from featurizers.mixers import MIXERS
from forcefield.errors import ConfigError

TIMES: dict[str, float] = {"fs": 1e-3, "ps": 1.0, "ns": 1e3, "us": 1e6, "µs": 1e6}


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of an analysis.

    Attributes:
        lag: A time such as "10ps", or a number of frames.
        coordinates: Number of slow coordinates.
        method: "linear", "vampnet" or "spib".
        mixer: Network of "vampnet" and "spib".
        states: Number of metastable states; None for that of the spectral gap. States of "spib" are
            those that it finds.
        max_states: Most states that the spectral gap may ask for.
        clusters: Of the Markov models.
        folds: Of the cross-validation.
        epochs: Of each training, at most.
        minutes: Of all trainings together, at most; None for no limit.
        seed: Of everything random.
        device: Where networks are trained, "cpu" or "cuda".
    """

    lag: int | str
    coordinates: int = 2
    method: Method = "vampnet"
    mixer: str = "mlp"
    states: int | None = None
    max_states: int = 8
    clusters: int = 100
    folds: int = 4
    epochs: int = 50
    minutes: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("mixer", self.mixer, tuple(MIXERS)),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}; known are {', '.join(known)}")
        for name, least in (
            ("coordinates", 1),
            ("states", 2),
            ("max_states", 2),
            ("clusters", 2),
            ("folds", 2),
            ("epochs", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name.replace('_', '-')} starts at {least}, found {value}")
        if self.states is not None and self.method == "spib":
            raise ConfigError("states: spib finds their number itself; leave it out")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes is a time above 0, found {self.minutes:g}")

    def lag_frames(self, frame_time: float | None) -> int:
        """The lag in frames.

        Args:
            frame_time: ps between frames, None if unknown.

        Raises:
            ConfigError: It is no time, no multiple of the time between frames, or that is unknown.
        """
        text = str(self.lag).strip()
        if re.fullmatch(r"[-+]?\d+", text):
            frames = int(text)
            if frames < 1:
                raise ConfigError(f"the lag starts at 1 frame, found {frames}")
            return frames
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(\S+)", text)
        if match is None or match[2] not in TIMES:
            raise ConfigError(
                f"lag {text!r} is neither a time such as 10ps nor a number of frames; units are "
                f"{', '.join(TIMES)}"
            )
        if frame_time is None:
            raise ConfigError(
                f"lag {text}: the features do not say the time between their frames; give the lag as a "
                "number of frames, or featurise with --frame-time"
            )
        exact = float(match[1]) * TIMES[match[2]] / frame_time
        frames = round(exact)
        if frames < 1 or abs(exact - frames) > 1e-3 * frames:
            raise ConfigError(
                f"lag {text} is {exact:.3g} frames of {frame_time:g} ps: choose a multiple of "
                f"{frame_time:g} ps"
            )
        return frames
