"""Train SchNetPack's PaiNN (128 features, 3 layers) on an rMD17 molecule for a fixed time.

    python train_painn.py --data rmd17 --molecule aspirin --budget-minutes 15 --out painn.json

Recipe: SchNetPack's own experiment file for rMD17 (src/schnetpack/configs/experiment/rmd17.yaml) with the
defaults of ``spktrain``. It works in kcal/mol, and so do the weights of its loss.
"""

import warnings
from collections.abc import Sequence

import compat  # noqa: F401
import schnetpack
import torch
from common import KCAL_PER_MOL, Array, Data, read_data, read_options, write_result
from schnetpack import properties
from schnetpack.data.loader import _atoms_collate_fn as collate_frames
from schnetpack.transform import CastTo32, MatScipyNeighborList
from timed_training import Peer, Recipe, TimedTraining
from torch import Tensor, nn

CUTOFF = 5.0


class PaiNN(Peer):
    """PaiNN with 20 Gaussians and a cosine cutoff."""

    recipe = Recipe(
        batch=10,
        learning_rate=1e-3,
        ema=0.995,
        energy_weight=0.01,
        late_energy_weight=0.01,
        forces_weight=0.99,
        per_atom=False,
        clip=None,
        unit=KCAL_PER_MOL,
        model={
            "n_atom_basis": 128,
            "n_interactions": 3,
            "n_rbf": 20,
            "r_max": CUTOFF,
            "optimizer": "AdamW, weight decay 0",
            "dtype": "float32",
        },
    )

    def __init__(self, data: Data) -> None:
        self.numbers = torch.as_tensor(data.numbers)
        self.transforms = [MatScipyNeighborList(cutoff=CUTOFF), CastTo32()]
        self.model = schnetpack.model.NeuralNetworkPotential(
            representation=schnetpack.representation.PaiNN(
                n_atom_basis=128,
                n_interactions=3,
                radial_basis=schnetpack.nn.GaussianRBF(n_rbf=20, cutoff=CUTOFF),
                cutoff_fn=schnetpack.nn.CosineCutoff(CUTOFF),
            ),
            input_modules=[schnetpack.atomistic.PairwiseDistances()],
            output_modules=[
                schnetpack.atomistic.Atomwise(n_in=128, output_key="energy"),
                schnetpack.atomistic.Forces(),
            ],
        )

    def encode(self, positions: Array) -> dict[str, Tensor]:
        """One frame as SchNetPack's dictionary; the centre of mass does not matter to the model."""
        frame = {
            properties.n_atoms: torch.tensor([len(self.numbers)]),
            properties.Z: self.numbers,
            properties.R: torch.as_tensor(positions),
            properties.cell: torch.zeros(1, 3, 3, dtype=torch.float64),
            properties.pbc: torch.zeros(3, dtype=torch.bool),
        }
        for transform in self.transforms:
            frame = transform(frame)
        return frame

    def collate(self, frames: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """SchNetPack's batch."""
        return collate_frames(list(frames))

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        # The model writes into its input, which is used again in the timing.
        output = model({key: value.detach() for key, value in batch.items()})
        return output["energy"].reshape(-1), output["forces"]

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW, without weight decay by SchNetPack's defaults."""
        return torch.optim.AdamW(
            self.model.parameters(), lr=self.recipe.learning_rate, weight_decay=0.0
        )


def main() -> None:
    """Train, test, write the JSON file."""
    warnings.filterwarnings("ignore")
    options = read_options(__doc__)
    data = read_data(options)
    result = TimedTraining(PaiNN(data), data, options).run()
    write_result(options, "SchNetPack PaiNN", "schnetpack", result)


if __name__ == "__main__":
    main()
