"""Train NequIP (l = 2, 32 features, 4 layers) on an rMD17 molecule for a fixed time.

    python train_nequip.py --data rmd17 --molecule aspirin --budget-minutes 15 --out nequip.json

Recipe: the authors' input files for rMD17 (github.com/mir-group/nequip-input-files), with a smaller
network and the loss on energies per atom of the package's present tutorial.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from common import Array, Data, read_data, read_options, write_result
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from timed_training import Peer, Recipe, TimedTraining
from torch import Tensor, nn

CUTOFF = 4.0


class NequIP(Peer):
    """Features of both parities, Bessel basis of 8, polynomial cutoff with p = 6."""

    recipe = Recipe(
        batch=5,
        learning_rate=0.01,
        ema=0.99,
        energy_weight=1.0,
        late_energy_weight=1.0,
        forces_weight=1.0,
        per_atom=True,
        clip=None,
        unit=1.0,
        model={
            "num_layers": 4,
            "l_max": 2,
            "num_features": 32,
            "parity": True,
            "r_max": CUTOFF,
            "num_bessels": 8,
            "radial_mlp": [64, 64],
            "optimizer": "Adam, AMSGrad",
            "dtype": "float32",
        },
    )

    def __init__(self, data: Data, seed: int) -> None:
        self.numbers = data.numbers
        types = [chemical_symbols[z] for z in sorted({int(z) for z in data.numbers})]
        self.transforms = [
            ChemicalSpeciesToAtomTypeMapper(
                model_type_names=types,
                chemical_species_to_atom_type_map={name: name for name in types},
            ),
            NeighborListTransform(r_max=CUTOFF),
        ]
        edges = [
            self.encode(r)[AtomicDataDict.EDGE_INDEX_KEY].shape[1]
            for r in data.train.positions[:100]
        ]
        set_global_state(allow_tf32=False)
        self.model = NequIPGNNModel(
            seed=seed,
            model_dtype="float32",
            type_names=types,
            r_max=CUTOFF,
            num_layers=4,
            l_max=2,
            parity=True,
            num_features=32,
            radial_mlp_depth=2,
            radial_mlp_width=64,
            num_bessels=8,
            bessel_trainable=True,
            polynomial_cutoff_p=6,
            avg_num_neighbors=float(np.mean(edges)) / len(data.numbers),
            per_type_energy_scales=float(np.sqrt(np.square(data.train.forces).mean())),
            per_type_energy_shifts=0.0,  # The mean energy is taken off beforehand, in float64.
            per_type_energy_scales_trainable=True,
            per_type_energy_shifts_trainable=True,
            compile_mode="eager",
        )

    def encode(self, positions: Array) -> dict[str, Tensor]:
        """One frame as NequIP's dictionary."""
        frame = from_ase(Atoms(numbers=self.numbers, positions=positions))
        for transform in self.transforms:
            frame = transform(frame)
        return frame

    def collate(self, frames: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """NequIP's batch."""
        return AtomicDataDict.batched_from_list(list(frames))

    def predict(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        output = model(dict(batch))
        return (
            output[AtomicDataDict.TOTAL_ENERGY_KEY].reshape(-1),
            output[AtomicDataDict.FORCE_KEY],
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with AMSGrad."""
        return torch.optim.Adam(self.model.parameters(), lr=self.recipe.learning_rate, amsgrad=True)


def main() -> None:
    """Train, test, write the JSON file."""
    warnings.filterwarnings("ignore")
    options = read_options(__doc__)
    data = read_data(options)
    result = TimedTraining(NequIP(data, options.seed), data, options).run()
    write_result(options, "NequIP l=2, 32 features, 4 layers", "nequip", result)


if __name__ == "__main__":
    main()
