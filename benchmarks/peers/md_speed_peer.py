"""A peer's ASE calculator, timed in turn with ours: started by ../md_speed.py in the peer's environment.

    ENV/bin/python md_speed_peer.py painn structure.extxyz --threads 1

Random weights, which cost what trained ones cost, in float32: SchNet (128 features, 6 layers) and PaiNN
(128, 3) of SchNetPack, NequIP (l = 2, 32 features, 4 layers), MACE (64x0e + 64x1o, 2 layers); cutoff 5 Å,
4 Å for NequIP.
"""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import compat  # noqa: F401
import numpy as np
import torch
from ase.io import read
from turns import serve

ELEMENTS = ("H", "C", "N", "O")
JITTER = 0.01


def schnetpack_calculator(representation: str, device: str) -> Any:
    """SchNet or PaiNN through SpkCalculator."""
    import schnetpack
    from schnetpack import transform
    from schnetpack.interfaces import SpkCalculator

    options = {
        "n_atom_basis": 128,
        "radial_basis": schnetpack.nn.GaussianRBF(n_rbf=20, cutoff=5.0),
        "cutoff_fn": schnetpack.nn.CosineCutoff(5.0),
    }
    if representation == "schnet":
        network = schnetpack.representation.SchNet(n_interactions=6, **options)
    else:
        network = schnetpack.representation.PaiNN(n_interactions=3, **options)
    model = schnetpack.model.NeuralNetworkPotential(
        representation=network,
        input_modules=[schnetpack.atomistic.PairwiseDistances()],
        output_modules=[
            schnetpack.atomistic.Atomwise(n_in=128, output_key="energy"),
            schnetpack.atomistic.Forces(),
        ],
        postprocessors=[transform.CastTo64()],
    )
    file = Path(tempfile.mkdtemp()) / "model.pt"
    torch.save(model, file)
    neighbors = transform.MatScipyNeighborList(cutoff=5.0)
    return SpkCalculator(
        str(file), neighbor_list=neighbors, energy_unit="eV", dtype=torch.float32, device=device
    )


def nequip_calculator(device: str) -> Any:
    """NequIP, not compiled."""
    from nequip.data import transforms
    from nequip.integrations.ase import NequIPCalculator
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state(allow_tf32=False)
    model = NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        type_names=list(ELEMENTS),
        r_max=4.0,
        num_layers=4,
        l_max=2,
        parity=True,
        num_features=32,
        radial_mlp_depth=2,
        radial_mlp_width=64,
        avg_num_neighbors=15.0,
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
        compile_mode="eager",
    ).eval()
    steps = [
        transforms.ChemicalSpeciesToAtomTypeMapper(
            model_type_names=list(ELEMENTS),
            chemical_species_to_atom_type_map={symbol: symbol for symbol in ELEMENTS},
        ),
        transforms.NeighborListTransform(r_max=4.0),
    ]
    return NequIPCalculator(model.to(device), device=device, transforms=steps)


def mace_calculator(device: str) -> Any:
    """MACE of the size that fits its authors' small models."""
    from e3nn import o3
    from mace import modules
    from mace.calculators import MACECalculator

    residual = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    torch.set_default_dtype(torch.float32)
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=residual,
        interaction_cls_first=residual,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("64x0e + 64x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=15.0,
        atomic_numbers=[1, 6, 7, 8],
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    return MACECalculator(models=model.to(device), device=device, default_dtype="float32")


CALCULATORS = {
    "schnet": partial(schnetpack_calculator, "schnet"),
    "painn": partial(schnetpack_calculator, "painn"),
    "nequip": nequip_calculator,
    "mace": mace_calculator,
}


def main() -> None:
    """Set the calculator up and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=list(CALCULATORS))
    parser.add_argument("structure", help="file that ASE reads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--system", default="", help="its name, for the row")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    atoms = read(arguments.structure)
    atoms.calc = CALCULATORS[arguments.peer](arguments.device)
    start = atoms.positions.copy()
    moves = JITTER * np.random.default_rng(1).normal(size=(8, *start.shape))

    def step(call: int) -> None:
        atoms.positions[:] = start + moves[call % len(moves)]
        atoms.get_forces()
        if arguments.peer not in ("schnet", "painn"):
            # SchNetPack would run its model a second time for the energy.
            atoms.get_potential_energy()

    facts = {
        "system": arguments.system,
        "way": arguments.peer,
        "atoms": len(atoms),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "threads": arguments.threads,
        "dtype": "float32",
        "torch": torch.__version__,
    }
    serve(step, facts)


if __name__ == "__main__":
    main()
