"""Train MACE (64x0e + 64x1o) on an rMD17 molecule for a fixed time.

    python train_mace.py --data rmd17 --molecule aspirin --budget-minutes 15 --out mace.json

Recipe: that of Batatia et al., MACE, NeurIPS 2022, appendix, and of the package's command line.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import compat  # noqa: F401
import numpy as np
import torch
from ase import Atoms
from common import Array, Data, read_data, read_options, write_result
from e3nn import o3
from mace import modules
from mace.data import AtomicData, config_from_atoms
from mace.tools import AtomicNumberTable, torch_geometric
from timed_training import Peer, Recipe, TimedTraining
from torch import Tensor, nn

CUTOFF = 5.0
WEIGHT_DECAY = 5e-7


class Mace(Peer):
    """Two layers, correlation order 3, Bessel basis of 8, messages up to degree 3."""

    recipe = Recipe(
        batch=5,
        learning_rate=0.01,
        ema=0.99,
        energy_weight=1.0,
        late_energy_weight=1000.0,
        forces_weight=1000.0,
        per_atom=True,
        clip=10.0,
        unit=1.0,
        model={
            "hidden_irreps": "64x0e + 64x1o",
            "num_interactions": 2,
            "max_ell": 3,
            "correlation": 3,
            "r_max": CUTOFF,
            "num_bessel": 8,
            "optimizer": f"Adam, AMSGrad, weight decay {WEIGHT_DECAY}",
            "dtype": "float32",
        },
    )

    def __init__(self, data: Data) -> None:
        self.numbers = data.numbers
        self.elements = AtomicNumberTable(sorted({int(z) for z in data.numbers}))
        edges = [self.encode(r).edge_index.shape[1] for r in data.train.positions[:100]]
        residual = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        self.model = modules.ScaleShiftMACE(
            r_max=CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=residual,
            interaction_cls_first=residual,
            num_interactions=2,
            num_elements=len(self.elements),
            hidden_irreps=o3.Irreps("64x0e + 64x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            # The mean energy is taken off beforehand, in float64.
            atomic_energies=np.zeros(len(self.elements)),
            avg_num_neighbors=float(np.mean(edges)) / len(data.numbers),
            atomic_numbers=self.elements.zs,
            correlation=3,
            gate=nn.functional.silu,
            atomic_inter_scale=float(np.sqrt(np.square(data.train.forces).mean())),
            atomic_inter_shift=0.0,
        )

    def encode(self, positions: Array) -> Any:
        """One frame as MACE's graph."""
        config = config_from_atoms(Atoms(numbers=self.numbers, positions=positions))
        return AtomicData.from_config(config, z_table=self.elements, cutoff=CUTOFF)

    def collate(self, frames: Sequence[Any]) -> dict[str, Tensor]:
        """MACE's batch."""
        return torch_geometric.Batch.from_data_list(list(frames)).to_dict()

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        output = model(dict(batch), training=model.training, compute_force=True)
        return output["energy"], output["forces"]

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; as in the package, only the linear layers and products decay."""
        decayed, others = [], []
        for name, parameter in self.model.named_parameters():
            linear = "linear.weight" in name or "skip_tp_full.weight" in name
            decays = name.startswith("products") or (name.startswith("interactions") and linear)
            (decayed if decays else others).append(parameter)
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
        return torch.optim.Adam(groups, lr=self.recipe.learning_rate, amsgrad=True)


def main() -> None:
    """Train, test, write the JSON file."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    options = read_options(__doc__)
    data = read_data(options)
    result = TimedTraining(Mace(data), data, options).run()
    write_result(options, "MACE 64x0e+64x1o", "mace-torch", result)


if __name__ == "__main__":
    main()
