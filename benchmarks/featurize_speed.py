"""Time of featurising a frame, in turn with the network that geom2vec has.

    python benchmarks/featurize_speed.py --top ala2.pdb --trajectory trajectory-0.dcd --peer ENV/bin/python

All ways get the same frames, every atom of them; a call is a batch of frames. Ours includes neighbour
lists and pooling to tokens. The peer is TorchMD-Net's equivariant transformer, which geom2vec featurises
with: 64 channels as the backbone that ships with the package has, 6 layers, 64 radial functions; in an
environment of its own, see peers/README.md.
"""

import argparse
import json
import sys
from pathlib import Path

from turns import serve, take_turns

WAYS = ("features", "features-compiled")


def run(way: str, arguments: argparse.Namespace) -> None:
    """Featurise batches whenever told to."""
    import mdtraj
    import torch

    from featurizers import TrajectoryFeaturizer
    from forcefield.memory import keep_freed_memory

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    trajectory = mdtraj.load(str(arguments.trajectory), top=str(arguments.top))
    featurizer = TrajectoryFeaturizer.pretrained(compile=way == "features-compiled")
    size = arguments.batch

    def step(call: int) -> None:
        start = call * size % (len(trajectory) - size)
        featurizer.transform(trajectory[start : start + size], tokens="residue")

    network = featurizer.backbone.representation
    serve(
        step,
        {
            "way": way,
            "atoms": trajectory.n_atoms,
            "batch": size,
            "threads": arguments.threads,
            "parameters": sum(p.numel() for p in network.parameters()),
            "torch": torch.__version__,
        },
    )


def main() -> None:
    """Print, and append to a file, one JSON line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectory", type=Path, required=True)
    parser.add_argument("--top", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=200, help="frames of a call")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", help="python with torchmd-net")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in a round")
    parser.add_argument("--out", type=Path, help="file that the rows are appended to")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        run(arguments.serve, arguments)
        return
    files = ["--trajectory", str(arguments.trajectory), "--top", str(arguments.top)]
    files += ["--threads", str(arguments.threads), "--batch", str(arguments.batch)]
    commands = [[sys.executable, __file__, *files, "--serve", way] for way in WAYS]
    if arguments.peer:
        script = str(Path(__file__).parent / "peers" / "featurize_peer.py")
        commands.append([arguments.peer, "-B", script, *files])
    for row in take_turns(commands, arguments.rounds, arguments.seconds):
        for key in ("cpu_ms", "wall_ms"):
            if key in row:
                row[f"{key}_per_frame"] = round(row.pop(key) / arguments.batch, 4)
        line = json.dumps(row)
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
