"""From geometries to a backbone that featurises: :func:`pretrain`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurizers.backbone import Backbone
from featurizers.pretraining.denoising import (
    Denoiser,
    DenoisingModule,
    build_denoiser,
    disturb,
    disturbed,
)
from featurizers.pretraining.report import write_report
from featurizers.pretraining.structures import divide, molecules_held_out, read_geometries
from forcefield.display import make_display
from forcefield.errors import ConfigError, DataError, ForceFieldError
from forcefield.files import write_json
from forcefield.machine import versions
from training import run_folder
from training.config import TrainConfig, architecture
from training.datasets.frames import data_hash
from training.finish import VERSIONED
from training.graphs import GraphDataset, evaluation_batches
from training.pretraining.storage import Structure
from training.run import choose_accelerator
from training.run_folder import RunFolder

WEIGHTS = "backbone.safetensors"
TEST_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Noise levels at which the result is tested, Å."""


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining left.

    Attributes:
        folder: With backbone.safetensors, summary.json, report.html.
        summary: Contents of summary.json.
        interrupted: It was stopped; ``resume`` continues it.
    """

    folder: RunFolder
    summary: dict[str, Any]
    interrupted: bool


def pretrain(
    sources: Sequence[str | Path],
    config: TrainConfig,
    *,
    levels: tuple[float, float] = (0.02, 0.3),
    copies: int = 2,
    held_out: float = 0.02,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Pretrained:
    """Train a backbone to remove noise from geometries.

    Args:
        sources: Files of geometries, see :func:`read_geometries`.
        config: Model, training and hardware, as for potentials; there is no energy to weigh.
        levels: Lowest and highest noise level, Å; each structure gets one between them.
        copies: Noisy copies of each structure.
        held_out: Share of the molecules to validate on.
        resume: Continue the run in the configuration's folder.
        overwrite: Replace a run of the same name.
        show_progress: Show progress on the screen.

    Raises:
        ConfigError: The folder holds a run already, levels, copies or share are impossible, or a GPU is
            asked for where there is none.
        DataError: A file cannot be read, or there are too few structures.
    """
    if not 0 < levels[0] <= levels[1]:
        raise ConfigError(f"noise levels are above zero and in order, found {levels} Å")
    if copies < 1 or not 0 < held_out <= 0.5:
        raise ConfigError(
            f"copies start at 1, and from 0 to half of the molecules are held out: found {copies} and "
            f"{held_out}"
        )
    accelerator = choose_accelerator(config.hardware)
    folder = run_folder.reopen(config) if resume else run_folder.check_new(config, overwrite)
    undo: Callable[[], None] = lambda: None  # noqa: E731
    threads = torch.get_num_threads()
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    try:
        structures = [s for path in sources for s in read_geometries(Path(path))]
        structures = [s for s in structures if len(s.numbers) > 1]
        train, valid = divide(structures, held_out)
        if not train or not valid:
            raise DataError(f"{len(structures)} geometries are too few to train and to validate on")
        frames = disturbed(train, levels, copies, seed=config.seed)
        graphs = GraphDataset(frames, config.model.cutoff)
        held = GraphDataset(disturbed(valid, levels, 1, seed=config.seed + 1), config.model.cutoff)
        species = sorted({int(z) for s in structures for z in s.numbers})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            denoiser, built = build_denoiser(
                architecture(config.model), species, graphs.average_neighbors()
            )
        denoiser.to(getattr(torch, config.hardware.precision))
        description = _description(sources, structures, train, valid, levels, copies)
        description["sha256"] = data_hash(frames)
        whole = molecules_held_out(description["molecules"], held_out)
        description["held_out"] = "molecules" if whole else "geometries of the same molecules"
        if resume:
            run_folder.check_same_data(folder, description)
            undo = run_folder.go_on(folder, config)
        else:
            run_folder.create(folder, config, overwrite)
        write_json(folder.data, description)
        if show_progress:
            print(
                f"{len(train):,} structures of {description['molecules']:,} molecules, {copies} noisy "
                f"copies each; {len(valid):,} held out -> {folder.path}",
                flush=True,
            )
        from training.fit import fit, quiet_lightning

        with quiet_lightning():
            result = fit(
                denoiser,
                graphs,
                held,
                config,
                accelerator,
                folder,
                resume,
                make_display() if show_progress else None,
                DenoisingModule,
            )
        denoiser = denoiser.cpu().eval()
        summary = {
            "unexplained_at_level_A": test(denoiser, valid, config),
            "train": {
                "stopped": result.stopped,
                "epochs": result.epochs,
                "steps": result.steps,
                "seconds": round(result.seconds, 2),
                "best_epoch": result.best_epoch,
            },
            "data": description,
            "parameters": sum(p.numel() for p in denoiser.representation.parameters()),
            "versions": versions(VERSIONED),
        }
    except ForceFieldError:
        undo()
        raise
    finally:
        torch.set_num_threads(threads)
    backbone = Backbone(denoiser.representation, built, denoiser.species, config.name)
    metadata = {
        "name": config.name,
        "data": description,
        "training": {"config": config.model_dump(), "epochs": result.epochs},
    }
    backbone.save(folder.path / WEIGHTS, metadata)
    write_json(folder.summary, summary)
    write_report(folder, config, summary)
    return Pretrained(folder, summary, result.stopped == "interrupted")


def test(
    denoiser: Denoiser, structures: Sequence[Structure], config: TrainConfig
) -> dict[str, float]:
    """Share of the noise's variance that a denoiser does not find, at several levels of noise."""
    shares = {}
    for level in TEST_LEVELS:
        generator = np.random.default_rng(config.seed + 2)
        frames = [disturb(structure, level, generator) for structure in structures]
        left = total = 0.0
        for _, batch in evaluation_batches(GraphDataset(frames, config.model.cutoff)):
            noise = denoiser(*batch.graph.tensors())["noise"].detach()
            left += float((noise - batch.forces).square().sum())
            total += float(batch.forces.square().sum())
        shares[f"{level:g}"] = left / total
    return shares


def _description(
    sources: Sequence[str | Path],
    structures: Sequence[Structure],
    train: Sequence[Structure],
    valid: Sequence[Structure],
    levels: tuple[float, float],
    copies: int,
) -> dict[str, Any]:
    from ase.data import chemical_symbols

    atoms = Counter(int(z) for s in structures for z in s.numbers)
    return {
        "sources": [Path(path).name for path in sources],
        "structures": {"train": len(train), "valid": len(valid)},
        "molecules": len({s.molecule for s in structures}),
        "atoms": {chemical_symbols[z]: count for z, count in sorted(atoms.items())},
        "noise_levels_A": list(levels),
        "copies": copies,
    }
