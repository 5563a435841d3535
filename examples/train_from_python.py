"""Train a potential from Python.

    python examples/train_from_python.py
    python examples/train_from_python.py train=200 epochs=20 layers=2

Starts from a preset; what follows on the command line changes it, as it would for train-potential
(``train-potential --help`` lists the keys). The data ship with the package.
"""

import sys

from training import load_config, train


def main() -> None:
    config = load_config("rmd17-ethanol-demo", ["name=from-python", *sys.argv[1:]])
    print(f"{config.model.name}, cutoff {config.model.cutoff} Å, {config.training.epochs} epochs")

    result = train(config, overwrite=True)

    errors = result.summary["test"]
    print(f"forces on the test frames: MAE {errors['forces_mae_meV_per_A']:.1f} meV/Å")
    print(f"energies on the test frames: MAE {errors['energy_mae_meV']:.1f} meV")
    print(f"for simulations: {result.folder.exported}")
    print(f"to look at: {result.folder.report}")


if __name__ == "__main__":
    main()
