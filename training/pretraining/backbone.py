"""Training of the backbone on several levels of theory at once.

    python -m training.pretraining.backbone OUT --xtb labelled.npz ... --qm7x qm7x.npz --set minutes=60

One representation serves all levels; each level has a readout of its own, because levels differ in
their energies of bonds far more than in what makes one environment different from another. What is
kept is the representation with the readout of the last level, the one nearest to a user's labels.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from forcefield import Potential, build_potential, save_potential
from forcefield.display import make_display
from forcefield.potential import MAX_ATOMIC_NUMBER
from forcefield.readout import EnergyReadout, fit_reference_energies
from training.config import TrainConfig
from training.config_io import load_config
from training.datasets.frames import Frame, data_hash
from training.datasets.md17 import read_npz
from training.datasets.options import ReadOptions
from training.fit import fit, quiet_lightning
from training.graphs import GraphDataset
from training.pretraining.molecules import ELEMENTS, is_wanted
from training.pretraining.storage import as_frame, load_structures
from training.run import choose_accelerator
from training.run_folder import RunFolder, create

LEVEL = MAX_ATOMIC_NUMBER + 1
"""Atomic numbers of level k are raised by k times this, so that a batch may mix levels."""


class MultiLevelPotential(Potential):
    """Several potentials on one representation, for training only.

    Atomic numbers tell the level of theory, see :data:`LEVEL`.

    Args:
        potentials: One for each level, of equal species; the first one's representation is used.
    """

    def __init__(self, potentials: Sequence[Potential]) -> None:
        first = potentials[0]
        super().__init__(first.representation, first.readout, first.species)
        self.architecture = first.architecture
        self.others = nn.ModuleList([potential.readout for potential in potentials[1:]])
        shifted = [
            torch.where(first.species_index >= 0, first.species_index + k * len(first.species), -1)
            for k in range(len(potentials))
        ]
        self.register_buffer("species_index", torch.cat(shifted), persistent=False)

    def atomic_energies(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> Tensor:
        """Energies of the atoms, each by the readout of its level; see :class:`Potential`."""
        n, kinds = species.shape[0], self.each_species.shape[0]
        level, species = species // kinds, species % kinds
        features, _ = self.representation(
            torch.cat([species, self.each_species]), edge_index, vectors
        )
        total = torch.zeros(n, dtype=torch.float64, device=species.device)
        for k, readout in enumerate([self.readout, *self.others]):
            interaction = readout.interaction(features[:n], features[n:], species)
            energy = interaction.double() + readout.reference_energies.index_select(0, species)
            total = total + torch.where(level == k, energy, 0.0)
        return total

    def last_level(self) -> Potential:
        """The potential of the last level."""
        readout = self.others[-1]
        assert isinstance(readout, EnergyReadout)
        potential = Potential(self.representation, readout, self.species)
        potential.architecture = self.architecture
        return potential


def build(
    levels: Sequence[Sequence[Frame]], config: TrainConfig, neighbors: float
) -> MultiLevelPotential:
    """A potential for several levels, with reference energies by least squares on each."""
    arguments = config.model.model_dump()
    potentials = []
    for frames in levels:
        chosen = some(frames, 5000)
        scale = np.sqrt(np.mean(np.square(np.concatenate([f.forces.ravel() for f in chosen]))))
        references = fit_reference_energies(
            [f.atomic_numbers for f in frames], [f.energy for f in frames]
        )
        potentials.append(
            build_potential(
                arguments,
                sorted(ELEMENTS),
                energy_scale=float(scale),
                reference_energies=references,
                avg_neighbors=neighbors,
            )
        )
    return MultiLevelPotential(potentials)


def divide(frames: Sequence[Frame], held_out: float = 0.02) -> tuple[list[Frame], list[Frame]]:
    """Training and validation frames; a molecule (or composition) is in one of them only."""
    names = sorted({frame.source for frame in frames})
    np.random.default_rng(0).shuffle(names)
    held = set(names[: max(1, round(held_out * len(names)))])
    train = [frame for frame in frames if frame.source not in held]
    return train, [frame for frame in frames if frame.source in held]


def read_xtb(paths: Sequence[Path]) -> list[Frame]:
    """Frames labelled by :mod:`training.pretraining.labels`."""
    return [as_frame(structure) for path in paths for structure in load_structures(path)]


def read_qm7x(path: Path) -> list[Frame]:
    """Frames of QM7-X (PBE0+MBD, eV), without the molecules that benchmarks test on."""
    frames = read_npz(path, ReadOptions(energy_unit="eV")).frames
    return [
        replace(frame, source=str(sorted(frame.atomic_numbers.tolist())))
        for frame in frames
        if is_wanted(frame.atomic_numbers)
    ]


def some(frames: Sequence[Frame], count: int) -> Sequence[Frame]:
    """About so many frames, at equal distances."""
    return frames[:: max(1, len(frames) // count)]


def raised(frames: Sequence[Frame], level: int) -> list[Frame]:
    """Frames with the atomic numbers of a level."""
    return [replace(f, atomic_numbers=f.atomic_numbers + level * LEVEL) for f in frames]


def main(
    out: Annotated[Path, typer.Argument(help="folder of the run")],
    xtb: Annotated[list[Path], typer.Option(help="npz files labelled with GFN2-xTB")],
    qm7x: Annotated[Path, typer.Option(help="npz file of QM7-X")],
    repeat: Annotated[int, typer.Option(help="times that QM7-X is seen in an epoch")] = 3,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value")] = None,
    resume: Annotated[bool, typer.Option(help="continue the run")] = False,
) -> None:
    """Train the backbone and write its weights."""
    config = load_config(
        None,
        [
            "dataset=pretraining",
            f"output={out.parent}",
            f"name={out.name}",
            *(settings or []),
        ],
    )
    accelerator = choose_accelerator(config.hardware)
    torch.set_num_threads(config.hardware.threads or torch.get_num_threads())
    levels = [read_xtb(xtb), read_qm7x(qm7x)]
    parts = [divide(frames) for frames in levels]
    train = [f for k, (part, _) in enumerate(parts) for f in raised(part, k) * (repeat if k else 1)]
    valid = [f for k, (_, part) in enumerate(parts) for f in raised(some(part, 400), k)]
    graphs = GraphDataset(train, config.model.cutoff)
    torch.manual_seed(config.seed)
    potential = build([part for part, _ in parts], config, graphs.average_neighbors())
    folder = RunFolder(out)
    if not resume:
        create(folder, config)
    typer.echo(f"{[len(part) for part, _ in parts]} training frames, {len(valid)} held out")
    held_out = GraphDataset(valid, config.model.cutoff)
    with quiet_lightning():
        result = fit(
            potential, graphs, held_out, config, accelerator, folder, resume, make_display()
        )
    metadata = {
        "name": out.name,
        "data": {"sha256": data_hash(f for frames in levels for f in frames)},
        "training": {"config": config.model_dump(), "epochs": result.epochs},
    }
    save_potential(potential.last_level(), folder.weights, metadata)


if __name__ == "__main__":
    typer.run(main)
