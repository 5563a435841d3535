"""The whole way in one program: train on rMD17 ethanol, simulate in ASE and OpenMM, write a report.

    python examples/demo.py
    python examples/demo.py --picoseconds 5 epochs=10      # shorter
    python examples/demo.py --keep-potential               # simulate again with the trained one

Leaves runs/demo/ with potential.pt, report.html (open it in a browser) and overview.png.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from demo_checks import agreement, milliseconds_per_step
from demo_report import NAMES, Trajectory, write_report

from training import load_config, train
from training.datasets import load_split
from training.run_folder import RunFolder


def simulate(folder: RunFolder, picoseconds: float) -> dict[str, Trajectory]:
    """Run both engines at once, one thread each; they print their progress themselves."""
    program = str(Path(__file__).with_name("demo_dynamics.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = {
        engine: subprocess.Popen(
            [sys.executable, program, engine, str(folder.path), "--picoseconds", str(picoseconds)],
            env=environment,
        )
        for engine in NAMES
    }
    try:
        codes = {engine: process.wait() for engine, process in processes.items()}
    finally:
        for process in processes.values():
            process.terminate()
    failed = [engine for engine, code in codes.items() if code]
    if failed:
        sys.exit(f"the simulation in {' and '.join(failed)} failed, see above")
    return {engine: Trajectory.load(folder.path / f"{engine}.npz") for engine in NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picoseconds", type=float, default=20.0, help="at constant energy")
    parser.add_argument("--keep-potential", action="store_true", help="of an earlier demo")
    parser.add_argument("overrides", nargs="*", help="key=value, as for train-potential")
    options = parser.parse_args()
    start = time.perf_counter()
    config = load_config("rmd17-ethanol-demo", ["name=demo", *options.overrides])
    folder = RunFolder(Path(config.output) / config.name)

    if not (options.keep_potential and folder.exported.is_file()):
        print("1/3  Training a potential for ethanol", flush=True)
        if train(config, overwrite=True).interrupted:
            sys.exit("training was interrupted; the demo ends here")
    print(
        f"2/3  Simulating {options.picoseconds:g} ps at 300 K in ASE and in OpenMM (TorchForce)",
        flush=True,
    )
    trajectories = simulate(folder, options.picoseconds)

    print("3/3  Comparing the engines and writing the report", flush=True)
    frames = load_split("rmd17:ethanol").test[::50]
    agreements = agreement(folder, frames)
    times = milliseconds_per_step(folder, frames[0])
    report = write_report(folder, trajectories, agreements, times)

    errors = folder.read_summary()["test"]
    model = times.pop("model alone")
    print(f"\nforces   MAE {errors['forces_mae_meV_per_A']:.1f} meV/Å on the test frames")
    print(f"energies MAE {errors['energy_mae_meV']:.1f} meV on the test frames")
    for engine, run in trajectories.items():
        print(
            f"{NAMES[engine]:17} {run.picoseconds:.0f} ps at {run.mean_temperature:.0f} K, energy "
            f"drift {run.drift:+.4f} meV/atom (fluctuates by {run.fluctuation:.4f})"
        )
    worst = [np.array([a.energy, a.forces]) for a in agreements]
    energy, forces = np.max(worst, axis=0)
    print(f"all engines agree with the model to {energy:.0e} eV and {forces:.0e} eV/Å")
    costs = ", ".join(f"{name} {value:.2f}" for name, value in times.items())
    print(f"ms per step: model alone {model:.2f}, {costs}")
    print(f"\npotential  {folder.exported}\nreport     {report.resolve().as_uri()}")
    print(f"picture    {folder.path / 'overview.png'}")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
