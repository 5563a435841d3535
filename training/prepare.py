"""Data and potential of a run, before the first step."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forcefield import Potential
from training.config import TrainConfig
from training.datasets import Split, data_hash, load_split
from training.graphs import GraphDataset
from training.start import Start, choose_start, initial_potential, resolve
from training.statistics import LEAST_SQUARES, Statistics, collect_statistics


@dataclass(frozen=True)
class Prepared:
    """Data and potential, ready to fit.

    Attributes:
        split: The frames.
        graphs: Graphs of the parts train, valid and test.
        statistics: Of the training frames.
        config: The configuration, with what depends on the data filled in.
        start: Where the weights come from.
        potential: With its initial weights, on the CPU.
    """

    split: Split
    graphs: dict[str, GraphDataset]
    statistics: Statistics
    config: TrainConfig
    start: Start
    potential: Potential

    def starting_from(self, start: Start) -> "Prepared":
        """The same with other weights."""
        potential = initial_potential(self.config, start, self.statistics, self.graphs["train"])
        return replace(self, start=start, potential=potential)

    def describe(self) -> dict[str, Any]:
        """Contents of data.json."""
        split, statistics, species = self.split, self.statistics, self.potential.species
        references = self.potential.readout.reference_energies.tolist()
        fitted_to_rest = (
            self.start.weights is not None and statistics.reference_source == LEAST_SQUARES
        )
        return {
            "source": split.source,
            "sha256": data_hash([*split.train, *split.valid, *split.test]),
            "frames": {name: len(graphs) for name, graphs in self.graphs.items()},
            "license": split.license,
            "notes": split.notes,
            "warnings": list(split.warnings),
            "elements": statistics.species,
            "reference_energies_eV": dict(zip(map(str, species), references, strict=True)),
            "reference_energies_from": statistics.reference_source
            + (", of what the starting weights leave" if fitted_to_rest else ""),
            "start": self.start.reason,
            "architecture": self.potential.architecture,
            "forces_rms_eV_per_A": statistics.energy_scale,
            "neighbors_per_atom": statistics.avg_neighbors,
        }


def split_of(config: TrainConfig) -> Split:
    """The frames that a configuration names.

    Raises:
        DataError: See :func:`training.datasets.load_split`.
    """
    options = config.dataset.model_dump(exclude={"source", "reference_energies", "split_seed"})
    seed = config.dataset.split_seed
    return load_split(config.dataset.source, seed=config.seed if seed is None else seed, **options)


def prepare(config: TrainConfig, kept: Path | None = None) -> Prepared:
    """Load the data and build the potential with its initial weights.

    Args:
        config: The run's configuration.
        kept: A copy of the weights that ``start`` names.

    Raises:
        ConfigError: The weights that were asked for do not fit.
        DataError: See :func:`training.datasets.load_split`.
    """
    split = split_of(config)
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    graphs = {name: GraphDataset(frames, config.model.cutoff) for name, frames in parts.items()}
    statistics = collect_statistics(
        split.train,
        graphs["train"].average_neighbors(),
        split.isolated_atoms,
        config.dataset.reference_energies,
    )
    start = choose_start(config, statistics.species, statistics.avg_neighbors, kept)
    config = resolve(config, start, len(split.train))
    potential = initial_potential(config, start, statistics, graphs["train"])
    return Prepared(split, graphs, statistics, config, start, potential)
