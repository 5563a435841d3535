"""From trajectory files of a dipeptide to its metastable states, without choosing a coordinate.

    python examples/dipeptide_states.py trajectory-*.dcd --top ala2.pdb --frame-time 1

The heavy atoms are the tokens; a small network turns their features into two slow coordinates. For the
trajectories of alanine dipeptide at figshare 1026131 the states are the basins of the φ/ψ plane.

Leaves runs/dipeptide/: features.h5, report/report.html with states, times and structures.
"""

import argparse
from pathlib import Path

from featurizers import TrajectoryFeaturizer, read_features
from featurizers.analysis import AnalysisSettings, analyze
from featurizers.featurize import featurize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trajectories", nargs="+", type=Path)
    parser.add_argument("--top", type=Path, required=True)
    parser.add_argument("--frame-time", type=float, default=1.0, help="ps between frames")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--lag", default="10ps")
    parser.add_argument("--method", choices=("linear", "vampnet", "spib"), default="vampnet")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()

    folder = Path("runs/dipeptide")
    features = folder / "features.h5"
    done = featurize(
        TrajectoryFeaturizer.pretrained(),
        options.trajectories,
        features,
        options.top,
        stride=options.stride,
        frame_time=options.frame_time,
        tokens="atom",
        hydrogens=False,
        overwrite=True,
        show_progress=True,
    )
    print(f"{done.frames} frames of {done.tokens} tokens, {done.frames_per_second:.0f} frames/s")

    settings = AnalysisSettings(lag=options.lag, method=options.method, epochs=options.epochs)
    result = analyze(
        read_features(features),
        settings,
        folder / "report",
        name="dipeptide",
        overwrite=True,
        show_progress=True,
    )
    slowest = result.summary["slowest_timescale"]
    print(f"slowest motion {slowest['ps']:.0f} ± {slowest['standard_error_ps']:.0f} ps")
    for number, share in enumerate(result.summary["states"]["populations"]):
        print(f"state {number}: {100 * share:.1f} % of the time")
    print(f"report: {folder / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
