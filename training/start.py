"""What training starts from: random weights, the pretrained backbone, or weights of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase.data import chemical_symbols

from forcefield import Potential, build_potential, load_potential
from forcefield.checkpoint import read_header
from forcefield.errors import ConfigError
from forcefield.pretrained import BACKBONE, LARGE
from forcefield.readout import fit_reference_energies, reference_energies_in_order
from forcefield.transfer import restrict_species, shift_reference_energies
from training.checkpoints import goes_on
from training.config import ModelConfig, TrainConfig, architecture
from training.evaluate import predict
from training.graphs import GraphDataset
from training.schedule import FROM_RANDOM_WEIGHTS
from training.statistics import LEAST_SQUARES, Statistics

FROM_TRAINED_WEIGHTS, WITH_FEW_FRAMES, MANY_FRAMES = 1e-3, 2.5e-4, 200
"""Largest learning rates from trained weights: with few frames less of what they know is overwritten."""

FEATURES = 64
"""Of the network that these rates are for; a wider one takes smaller steps."""

MUCH_DENSER = 4.0

WEIGHTS = {"pretrained": BACKBONE, "large": LARGE}
"""What ``start`` may be besides ``auto``, ``scratch`` and a path."""

FRAMES_FOR_REFERENCE_ENERGIES, ATOMS_FOR_REFERENCE_ENERGIES = 200, 10_000
FRAMES_WITH_AN_ELEMENT = 10
"""Up to so many besides: a rare element has a reference energy, too."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        weights: File of the weights, None for random ones.
        reason: Why so, in words.
    """

    weights: Path | None
    reason: str


def with_model_of_start(config: TrainConfig, kept: Path | None = None) -> TrainConfig:
    """The configuration with the model of the weights that it names, as far as it says nothing else.

    Args:
        config: With ``start``.
        kept: A copy of these weights.

    Raises:
        CheckpointError: No such weights.
    """
    path = kept or path_of_start(config.start)
    if path is None:
        return config
    found = read_header(path)["architecture"]
    said = config.model.model_fields_set
    known = {
        key: found[key] for key in ModelConfig.model_fields if key in found and key not in said
    }
    return config.model_copy(update={"model": config.model.model_copy(update=known)})


def choose_start(
    config: TrainConfig,
    species: Sequence[int],
    neighbors: float = 0.0,
    kept: Path | None = None,
) -> Start:
    """Decide what to start from.

    Args:
        config: ``start`` and the model.
        species: Atomic numbers of the training frames.
        neighbors: Their neighbours per atom: nothing that was learned in molecules is taken by itself
            to much denser matter.
        kept: A copy of the weights that ``start`` names.

    Raises:
        ConfigError: The weights that were asked for do not fit the elements or the model.
        CheckpointError: No such weights.
    """
    if config.start == "scratch":
        return Start(None, "random weights, as start=scratch says")
    path = kept or path_of_start(config.start)
    if path is not None:
        obstacle = _obstacle(config, species, path)
        if obstacle is not None:
            raise ConfigError(f"start={config.start}: {obstacle}; or set start=scratch")
        return Start(path, f"the weights of {path.name}")
    obstacles = []
    for shipped in WEIGHTS.values():
        obstacle = _obstacle(config, species, shipped) or _density(neighbors, shipped)
        if obstacle is None:
            return Start(shipped, f"the weights of {shipped.name}")
        obstacles.append(obstacle)
    return Start(None, f"random weights, because {obstacles[0]}")


def path_of_start(start: str) -> Path | None:
    """The file that a name, a file or a run's folder stands for; None for ``auto`` and ``scratch``.

    Raises:
        ConfigError: A run that goes on, or went on and was killed.
    """
    if start in ("auto", "scratch"):
        return None
    path = WEIGHTS.get(start) or Path(start).expanduser()
    if not path.is_dir():
        return path
    if goes_on(path):
        raise ConfigError(
            f"{start} was continued and has not come to its end: its potential.safetensors is of before. "
            f"Finish it (train-potential {start} --resume), or name that file"
        )
    return path / "potential.safetensors"


def _obstacle(config: TrainConfig, species: Sequence[int], path: Path) -> str | None:
    """Why these weights do not fit, None if they do."""
    header = read_header(path)
    unknown = [chemical_symbols[z] for z in species if z not in header["species"]]
    if unknown:
        known = ", ".join(chemical_symbols[z] for z in header["species"])
        return f"{path.name} knows {known}, not {', '.join(unknown)}"
    wanted = architecture(config.model)
    # Older files do not say that they have no products.
    needed = {"tensor_product": False, **header["architecture"]}
    differing = [
        f"model.{key}={needed.get(key)} (now {value})"
        for key, value in wanted.items()
        if needed.get(key) != value
    ]
    if differing:
        return f"{path.name} needs {', '.join(differing)}"
    return None


def _density(neighbors: float, path: Path) -> str | None:
    usual = read_header(path)["architecture"]["avg_neighbors"]
    if neighbors > MUCH_DENSER * usual:
        return f"atoms have {neighbors:.0f} neighbours, and in what {path.name} saw {usual:.0f}"
    return None


def resolve(config: TrainConfig, start: Start, frames: int) -> TrainConfig:
    """The configuration with what start and number of training frames decide filled in."""
    rate = FROM_RANDOM_WEIGHTS
    if start.weights is not None or config.xtb_frames:
        rate = FROM_TRAINED_WEIGHTS if frames >= MANY_FRAMES else WITH_FEW_FRAMES
        rate *= min(1.0, FEATURES / config.model.features)
    training = config.training
    if training.learning_rate is None:
        training = training.model_copy(update={"learning_rate": rate})
    if config.start == "auto":
        names = {path: name for name, path in WEIGHTS.items()}
        name = "scratch" if start.weights is None else names[start.weights]
        config = config.model_copy(update={"start": name})
    return config.model_copy(update={"training": training})


def initial_potential(
    config: TrainConfig, start: Start, statistics: Statistics, train: GraphDataset
) -> Potential:
    """Build the potential that training begins with.

    Trained weights keep their energy scales. Their reference energies are fitted anew to what they
    leave of the training energies, unless the data or the user give energies of isolated atoms.

    Args:
        config: Model, precision and seed.
        start: From :func:`choose_start`.
        statistics: Of the training frames.
        train: The training frames.
    """
    dtype = getattr(torch, config.hardware.precision)
    if start.weights is None:
        # The seed fixes the weights without touching the random state of the caller's program.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return build_potential(
                architecture(config.model),
                statistics.species,
                energy_scale=statistics.energy_scale,
                reference_energies=statistics.reference_energies,
                avg_neighbors=statistics.avg_neighbors,
                dtype=dtype,
            )
    potential = restrict_species(load_potential(start.weights, dtype)[0], statistics.species)
    if statistics.reference_source == LEAST_SQUARES:
        chosen = train.subset(_frames_for_reference_energies(train))
        prediction = predict(potential, chosen, "cpu")
        numbers = [item.graph.atomic_numbers.numpy() for item in chosen.items]
        left = prediction.energy - prediction.predicted_energy
        shift_reference_energies(potential, fit_reference_energies(numbers, left))
    else:
        values = reference_energies_in_order(potential.species, statistics.reference_energies)
        potential.readout.reference_energies.copy_(torch.tensor(values, dtype=torch.float64))
    return potential.train()


def _frames_for_reference_energies(train: GraphDataset) -> list[int]:
    """Frames at equal distances, and for each element some of those that have it."""
    chosen = set(train.evenly(FRAMES_FOR_REFERENCE_ENERGIES, ATOMS_FOR_REFERENCE_ENERGIES))
    frame_of_atom = torch.arange(len(train)).repeat_interleave(train.num_atoms)
    for z in train.atomic_numbers.unique():
        having = frame_of_atom[train.atomic_numbers == z].unique_consecutive()
        chosen.update(having[:: -(-len(having) // FRAMES_WITH_AN_ELEMENT)].tolist())
    return sorted(chosen)
