"""Slow coordinates, metastable states and their kinetics from features of trajectories.

    from featurizers import read_features
    from featurizers.analysis import AnalysisSettings, analyze

    result = analyze(read_features("features.h5"), AnalysisSettings(lag="10ps"), "report")
    result.analysis.coordinates  # (frames, 2), the slowest first

Data flow: :mod:`frames` joins the features of trajectories, :mod:`lagged` divides them for
cross-validation, :mod:`methods` finds coordinates (:mod:`linear`, :mod:`vampnet`, :mod:`spib`),
:mod:`scores` tells how good they are, :mod:`markov` makes Markov models of them, :mod:`run` does
all of it and :mod:`report` shows it.
"""

from featurizers.analysis.run import AnalysisResult, analyze
from featurizers.analysis.settings import AnalysisSettings

__all__ = ["AnalysisResult", "AnalysisSettings", "analyze"]
