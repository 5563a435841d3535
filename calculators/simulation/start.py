"""From settings and a structure, or from a checkpoint, to a run that can take its next step."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.optimize import LBFGS

from calculators.ase import PotentialCalculator
from calculators.evaluator import STATIC_ATOMS, Evaluator, open_potential
from calculators.simulation.ase_engine import ASEEngine, ase_device
from calculators.simulation.checkpoint import Checkpoint
from calculators.simulation.engine import (
    Engine,
    Sample,
    degrees_of_freedom,
    starting_velocities,
    torch_dtype,
)
from calculators.simulation.folder import SimulationFolder
from calculators.simulation.openmm_engine import OpenMMEngine, openmm_platform
from calculators.simulation.pace import Pace
from calculators.simulation.record import Mark, Record, Uncertainty
from calculators.simulation.settings import SimulationSettings
from calculators.simulation.stability import Bonds, find_bonds
from calculators.simulation.structure import file_hash, molecular_bonds, molecules
from calculators.simulation.summary import describe_atoms
from calculators.simulation.topology import name_residues, openmm_topology, write_pdb
from calculators.simulation.trajectory import check_writable, open_trajectory
from forcefield.errors import EngineError, NonFiniteForceError
from forcefield.export import ExportedPotential
from forcefield.files import write_json
from forcefield.machine import machine, versions
from forcefield.uncertainty import check_uncertainty

RELAXED, RELAXATION_STEPS = 0.01, 500
"""eV/Å, largest force at which a minimisation ends, and steps after which it gives up."""


FILES = ("potential", "structure")
"""Settings that name files."""

VERSIONED = ("ase", "openmm", "numpy", "vesin")
"""Packages whose versions are kept with a simulation."""


@dataclass
class Run:
    """A run in progress.

    Attributes:
        settings: What to do.
        folder: Paths of the files.
        atoms: Starting structure, prepared.
        engine: Moves the atoms.
        record: Writes what happens.
        pace: Steps and seconds so far.
        last: The last sample.
    """

    settings: SimulationSettings
    folder: SimulationFolder
    atoms: Atoms
    engine: Engine
    record: Record
    pace: Pace
    last: Sample

    def save_checkpoint(self) -> None:
        """Put all files on the disk, then the checkpoint that belongs to them."""
        mark = self.record.sync()
        state = self.engine.state()
        Checkpoint(self.atoms, self.record.bonds, state, mark, self.pace).save(
            self.folder.checkpoint
        )


def load_potential(settings: SimulationSettings) -> ExportedPotential:
    """The potential on the device and in the precision of the settings.

    Raises:
        CheckpointError: It cannot be read, or holds no error estimate although one is asked for.
        ConfigError: There is no such device or precision.
    """
    if settings.engine == "ase":
        device = ase_device(settings.platform)
    else:
        device = openmm_platform(settings.platform)[1]
    potential = open_potential(
        settings.potential, device, torch_dtype(settings), compile=settings.compile
    )
    if settings.uncertainty:
        check_uncertainty(potential.module, settings.potential)
    return potential


def make_engine(
    settings: SimulationSettings,
    atoms: Atoms,
    potential: ExportedPotential,
    velocities: np.ndarray | None = None,
) -> Engine:
    """The engine of the settings at step 0.

    Args:
        settings: The simulation.
        atoms: Starting structure, prepared.
        potential: From :func:`load_potential`.
        velocities: (n, 3), ASE's unit; by default those of the settings.
    """
    if velocities is None:
        velocities = starting_velocities(atoms, settings)
    if settings.engine == "ase":
        return ASEEngine(settings, atoms, velocities, potential)
    found = find_bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    residues = name_residues(atoms, molecules(atoms, found))
    pairs = molecular_bonds(atoms, found).pairs
    return OpenMMEngine(settings, atoms, velocities, potential, residues, pairs)


def begin(
    settings: SimulationSettings,
    folder: SimulationFolder,
    atoms: Atoms,
    bonds: Bonds | None,
    potential: ExportedPotential,
    hold: Callable[[], None] | None = None,
) -> Run:
    """A new run, with its first frame and checkpoint. Mistakes are found before a file is written.

    Args:
        settings: What to do.
        folder: Receives the files; those of an earlier run are removed.
        atoms: Starting structure, prepared.
        bonds: By which stability is judged; None for those of the structure.
        potential: From :func:`load_potential`.
        hold: Keeps other processes out of the folder once it is there.
    """
    potential.check_elements(atoms.numbers)
    if settings.relax:
        relax(atoms, potential)
    engine = make_engine(settings, atoms, potential)
    first = engine.sample()
    if not first.is_finite():
        raise NonFiniteForceError("the energy of the starting structure is not finite")
    check_writable(settings)
    values = _settings_values(settings, atoms, potential, engine)
    folder.path.mkdir(parents=True, exist_ok=True)
    if hold is not None:
        hold()
    # The settings are replaced, never gone: without them nobody may write into the folder again.
    for path in folder.all_files():
        if path != folder.settings:
            path.unlink(missing_ok=True)
    write_json(folder.settings, values)
    found = find_bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    residues = name_residues(atoms, molecules(atoms, found))
    write_pdb(folder.topology, atoms, residues, found.pairs)
    record = _make_record(settings, folder, atoms, bonds or found, potential, None)
    run = Run(settings, folder, atoms, engine, record, Pace(), first)
    record.add(first)
    run.save_checkpoint()
    return run


def reopen(
    settings: SimulationSettings, folder: SimulationFolder, potential: ExportedPotential
) -> Run:
    """A run as it was at its last checkpoint; what its files hold beyond that is cut off.

    Args:
        settings: Those of the run, compared before.
        folder: Its folder.
        potential: From :func:`load_potential`.
    """
    checkpoint = Checkpoint.load(folder.checkpoint)
    atoms = checkpoint.atoms
    engine = make_engine(settings, atoms, potential, np.zeros((len(atoms), 3)))
    engine.restore(checkpoint.state)
    record = _make_record(settings, folder, atoms, checkpoint.bonds, potential, checkpoint.mark)
    values = json.loads(folder.settings.read_text(encoding="utf-8"))
    values["settings"] |= _with_absolute_paths(settings)
    values["steps"] = settings.steps
    write_json(folder.settings, values)
    for path in (folder.failed, folder.summary):
        path.unlink(missing_ok=True)
    return Run(settings, folder, atoms, engine, record, checkpoint.pace, engine.sample())


def relax(atoms: Atoms, potential: ExportedPotential) -> None:
    """Move the atoms to a minimum of the energy, in place; the cell stays.

    Raises:
        EngineError: No minimum was found.
    """
    atoms.calc = PotentialCalculator(potential)
    optimizer: Any = LBFGS
    converged = optimizer(atoms, logfile=None).run(fmax=RELAXED, steps=RELAXATION_STEPS)
    force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    atoms.calc = None
    if not converged:
        raise EngineError(
            f"--relax found no minimum in {RELAXATION_STEPS} steps, the largest force is still "
            f"{force:.2g} eV/Å: look at the structure, or start without --relax"
        )


@contextmanager
def threads(settings: SimulationSettings, atoms: int) -> Iterator[None]:
    """Torch's threads for a run: more than one only cost time for small molecules.

    Args:
        settings: The simulation.
        atoms: Their number.
    """
    before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    elif atoms <= STATIC_ATOMS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_record(
    settings: SimulationSettings,
    folder: SimulationFolder,
    atoms: Atoms,
    bonds: Bonds,
    potential: ExportedPotential,
    mark: Mark | None,
) -> Record:
    topology = None
    if settings.format == "xtc":
        with contextlib.suppress(ImportError):  # the writer says what is missing
            topology = openmm_topology(atoms, name_residues(atoms, molecules(atoms, bonds)))
    trajectory = open_trajectory(
        folder.trajectory(settings.format),
        settings,
        atoms,
        topology,
        None if mark is None else mark.trajectory,
    )
    uncertainty: Uncertainty | None = None
    if settings.uncertainty:
        uncertainty = Evaluator(potential, atoms.numbers).uncertainty
    freedom = degrees_of_freedom(atoms, settings)
    return Record(folder, settings, atoms, bonds, freedom, trajectory, uncertainty, mark)


def _settings_values(
    settings: SimulationSettings, atoms: Atoms, potential: ExportedPotential, engine: Engine
) -> dict[str, Any]:
    """Contents of settings.json: what was asked for, and what it was resolved to."""
    values = _with_absolute_paths(settings)
    files: dict[str, Any] = {
        name: {"sha256": file_hash(Path(values[name]))} for name in FILES if values[name]
    }
    return {
        "settings": values,
        "steps": settings.steps,
        "engine": engine.describe(),
        "degrees_of_freedom": degrees_of_freedom(atoms, settings),
        "structure": files.get("structure", {}) | describe_atoms(atoms),
        "potential": files["potential"] | {"header": potential.metadata},
        "versions": versions(VERSIONED),
        "machine": machine(potential.device.type),
    }


def _with_absolute_paths(settings: SimulationSettings) -> dict[str, Any]:
    """Settings for JSON, which serve from another folder, too."""
    values = settings.model_dump(mode="json")
    return values | {name: str(Path(values[name]).resolve()) for name in FILES if values[name]}
