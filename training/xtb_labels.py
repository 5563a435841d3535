"""Geometries around a run's training frames, labelled with GFN2-xTB (see :mod:`training.xtb`)."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

from forcefield.errors import ConfigError, DataError
from forcefield.files import write_with
from training.config import TrainConfig
from training.datasets.frames import Frame
from training.pretraining.storage import Structure, load_structures, save_structures
from training.run_folder import RunFolder

HELD_OUT, MOST_HELD_OUT = 0.1, 100
"""Share, and number, of the labelled frames that choose the weights."""

MOST_LOST = 0.5
"""Share of the frames that may be missing, because GFN2-xTB gave up on the way to them."""

HEAVIEST = 86
"""Last element that GFN2-xTB knows."""


@dataclass(frozen=True)
class Labels:
    """Where the labelled frames are.

    Attributes:
        path: Their file, extxyz.
        count: How many there are.
        seconds: What labelling them took; 0 if they were there already.
    """

    path: Path
    count: int
    seconds: float

    @property
    def held_out(self) -> int:
        """Frames among them to choose the weights by."""
        return min(MOST_HELD_OUT, max(1, round(HELD_OUT * self.count)))


def check(config: TrainConfig, frames: Sequence[Frame]) -> None:
    """Refuse what GFN2-xTB cannot label, before anything is written.

    Args:
        config: ``xtb_frames``, ``xtb_charge`` and the hardware.
        frames: The training frames.

    Raises:
        ConfigError: tblite is missing, or the run is shared by several devices.
        DataError: Frames with periodic directions, heavy elements or an odd number of electrons.
    """
    if find_spec("tblite") is None:
        raise ConfigError("xtb_frames needs tblite: pip install tblite")
    if config.hardware.devices > 1:
        raise ConfigError(
            "xtb_frames goes with hardware.devices=1: train on one device, and start from that run"
        )
    charge = config.xtb_charge
    for frame in frames:
        if frame.pbc.any():
            raise DataError(
                f"{frame.where}: xtb_frames is for molecules, and this frame is periodic"
            )
        if frame.atomic_numbers.max() > HEAVIEST:
            raise DataError(
                f"{frame.where}: GFN2-xTB knows no element after radon; leave xtb_frames out"
            )
        electrons = int(frame.atomic_numbers.sum()) - charge
        if electrons <= 0:
            raise DataError(f"{frame.where}: no electrons are left with xtb_charge={charge}")
        if electrons % 2:
            raise DataError(
                f"{frame.where}: an odd number of electrons with a charge of {charge}. "
                "xtb_frames is for closed shells; state the charge of ions with xtb_charge=..."
            )


def label(config: TrainConfig, frames: Sequence[Frame], folder: RunFolder, quiet: bool) -> Labels:
    """Label geometries along hot trajectories that begin at the training frames.

    Args:
        config: ``xtb_frames``, ``xtb_charge``, ``seed`` and the number of threads.
        frames: The training frames.
        folder: Receives the labelled frames; those of a run that was stopped are used again.
        quiet: Show no progress.

    Raises:
        DataError: GFN2-xTB fails for most of them, or for all that hold some element.
    """
    path = folder.path / "xtb.extxyz"
    if path.is_file():
        return Labels(path, len(ase.io.read(path, ":")), 0.0)
    begin, wanted = time.perf_counter(), config.xtb_frames
    if not quiet:
        print(f"labelling {wanted} geometries around the training frames with GFN2-xTB", flush=True)
    count = min(wanted, len(frames))
    starts = [
        Structure(frame.atomic_numbers, frame.positions, str(k))
        for k, frame in enumerate(frames[k * len(frames) // count] for k in range(count))
    ]
    starts_file, labelled_file = folder.path / "xtb-starts.npz", folder.path / "xtb-labelled.npz"
    save_structures(starts, starts_file)
    _heat(config, starts_file, labelled_file, -(-wanted // count), quiet)
    labelled = _spread(load_structures(labelled_file), wanted)
    if len(labelled) < MOST_LOST * wanted:
        raise DataError(
            f"GFN2-xTB labelled {len(labelled)} of {wanted} geometries and gave up on the others: it does "
            "not describe these molecules; check xtb_charge, or leave xtb_frames out"
        )
    if len(labelled) < wanted and not quiet:
        print(f"GFN2-xTB gave up on some: {len(labelled)} geometries are labelled", flush=True)
    labels = Labels(path, len(labelled), time.perf_counter() - begin)
    _check_elements(frames, labelled, labels.held_out)
    atoms = [_as_atoms(structure) for structure in labelled]
    write_with(path, lambda temporary: ase.io.write(temporary, atoms, format="extxyz"))
    starts_file.unlink()
    labelled_file.unlink()
    return labels


def _heat(config: TrainConfig, starts: Path, labelled: Path, frames: int, quiet: bool) -> None:
    """Run :mod:`training.pretraining.labels`.

    A program of its own: a script of the user's that trains may not bear to be imported by workers. Nor
    may modules in the user's folder stand in the way of its own: -P.
    """
    threads = config.hardware.threads
    options = {
        "--frames": frames,
        "--processes": threads or _processors(),
        "--seed": config.seed,
        "--charge": config.xtb_charge,
    }
    process = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "training.pretraining.labels", starts, labelled),
            *(str(word) for option in options.items() for word in option),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL if quiet else None,
        check=False,
    )
    if process.returncode:
        raise DataError("GFN2-xTB failed, see above; leave xtb_frames out to train without it")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spread(labelled: Sequence[Structure], wanted: int) -> list[Structure]:
    """The first ones of every trajectory, then the second ones, and so on."""
    seen: Counter[str] = Counter()
    order = []
    for k, structure in enumerate(labelled):
        order.append((seen[structure.molecule], k))
        seen[structure.molecule] += 1
    return [labelled[k] for _, k in sorted(order)[:wanted]]


def _check_elements(frames: Sequence[Frame], labelled: Sequence[Structure], held_out: int) -> None:
    """That whatever is held out, some labelled frame with each element is left to learn from."""
    count = Counter(z for structure in labelled for z in set(structure.numbers.tolist()))
    for z in sorted({z for frame in frames for z in frame.atomic_numbers.tolist()}):
        if count[z] <= held_out:
            raise DataError(
                f"only {count[z]} of {len(labelled)} geometries that GFN2-xTB labelled hold "
                f"{chemical_symbols[z]}: raise xtb_frames, or leave it out"
            )


def _as_atoms(structure: Structure) -> Atoms:
    atoms = Atoms(numbers=structure.numbers, positions=structure.positions)
    atoms.calc = SinglePointCalculator(atoms, energy=structure.energy, forces=structure.forces)
    return atoms
