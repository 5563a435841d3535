"""Simulate with a potential in OpenMM, then look at the trajectory with the same weights.

    train-potential rmd17-ethanol
    python examples/featurize_simulation.py runs/rmd17-ethanol ethanol.xyz --time 100ps

Tokens are the heavy atoms with what surrounds them. Leaves runs/featurized/: md/ (the simulation),
features.h5, report/report.html.
"""

import argparse
from pathlib import Path

from calculators.simulation import make_settings, simulate
from featurizers import TrajectoryFeaturizer, read_features
from featurizers.analysis import AnalysisSettings, analyze
from featurizers.featurize import featurize

STEPS = 10
"""Time steps of 0.5 fs between frames."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("structure", type=Path)
    parser.add_argument("--time", default="100ps")
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--lag", default="100fs")
    options = parser.parse_args()

    folder = Path("runs/featurized")
    settings = make_settings(
        {
            "potential": str(options.run / "potential.pt"),
            "structure": str(options.structure),
            "time": options.time,
            "temperature": str(options.temperature),
            "every": STEPS,
        }
    )
    simulation = simulate(settings, folder / "md", overwrite=True)
    print(f"simulation: {simulation.summary['stability']['verdict']}")

    features = folder / "features.h5"
    featurize(
        TrajectoryFeaturizer.from_file(options.run / "potential.safetensors"),
        [folder / "md" / "trajectory.dcd"],
        features,
        folder / "md" / "topology.pdb",
        frame_time=STEPS * settings.timestep,
        tokens="atom",
        hydrogens=False,
        overwrite=True,
    )
    analysis = AnalysisSettings(lag=options.lag, method="linear", states=2)
    result = analyze(
        read_features(features),
        analysis,
        folder / "report",
        name=options.structure.stem,
        overwrite=True,
    )
    slowest = result.summary["slowest_timescale"]
    print(f"slowest motion {slowest['ps']:.3f} ± {slowest['standard_error_ps']:.3f} ps")
    print(f"report: {folder / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
