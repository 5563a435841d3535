"""TorchMD-Net's equivariant transformer on frames of a trajectory: started by ../featurize_speed.py.

    ENV/bin/python featurize_peer.py --trajectory trajectory-0.dcd --top ala2.pdb

Random weights, which cost what trained ones cost, float32, no gradients; the sizes are those of geom2vec's
smallest checkpoint (64 channels, 6 layers, 64 radial functions), its cutoff is an option.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mdtraj
import torch
import torchmdnet
from torchmdnet.models.torchmd_et import TorchMD_ET
from turns import serve


def main() -> None:
    """Evaluate batches whenever told to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectory", required=True)
    parser.add_argument("--top", required=True)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cutoff", type=float, default=7.5, help="Å, geom2vec's")
    parser.add_argument("--atoms-at-a-time", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trajectory = mdtraj.load(arguments.trajectory, top=arguments.top)
    atoms = trajectory.n_atoms
    numbers = torch.tensor([a.element.atomic_number for a in trajectory.topology.atoms])
    positions = torch.as_tensor(10.0 * trajectory.xyz)
    torch.manual_seed(0)
    network = TorchMD_ET(
        hidden_channels=64,
        num_layers=6,
        num_rbf=64,
        cutoff_upper=arguments.cutoff,
        max_num_neighbors=32,
    ).eval()
    size = max(1, arguments.atoms_at_a_time // atoms)

    def step(call: int) -> None:
        first = call * arguments.batch % (len(positions) - arguments.batch)
        frames = positions[first : first + arguments.batch]
        with torch.no_grad():
            for part in frames.split(size):
                batch = torch.arange(len(part)).repeat_interleave(atoms)
                network(numbers.repeat(len(part)), part.reshape(-1, 3), batch)

    serve(
        step,
        {
            "way": f"torchmd-et, cutoff {arguments.cutoff:g}",
            "atoms": atoms,
            "batch": arguments.batch,
            "threads": arguments.threads,
            "parameters": sum(p.numel() for p in network.parameters()),
            "torch": torch.__version__,
            "torchmd-net": getattr(torchmdnet, "__version__", "3.1.0"),
        },
    )


if __name__ == "__main__":
    main()
