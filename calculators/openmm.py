"""OpenMM forces and systems from an exported potential.

    from calculators.openmm import create_system
    system = create_system(pdb.topology, "runs/ethanol/potential.pt")
    simulation = openmm.app.Simulation(pdb.topology, system, integrator)

The bare forces are in :mod:`calculators.openmm_forces`, systems that are part machine-learned and
part classical in :mod:`calculators.openmm_mixed`, the guard of a running simulation in
:mod:`calculators.openmm_reporter`; their main names can be imported from here.
"""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calculators.guard import volume_without_room
from calculators.openmm_forces import (
    ENERGY,
    FORCE,
    LENGTH,
    PotentialSource,
    choose_engine,
    import_openmm,
    python_force,
    torch_force,
)
from calculators.openmm_mixed import create_mixed_system
from calculators.openmm_particles import is_periodic
from calculators.openmm_region import connect_molecules
from calculators.openmm_reporter import StabilityReporter
from calculators.openmm_xml import system_from_xml
from forcefield.errors import ConfigError

if TYPE_CHECKING:
    import openmm
    from openmm.app import Topology

__all__ = [
    "ENERGY",
    "FORCE",
    "LENGTH",
    "StabilityReporter",
    "create_mixed_system",
    "create_system",
    "python_force",
    "system_from_xml",
    "torch_force",
]


def create_system(
    topology: "Topology",
    potential: PotentialSource,
    engine: Literal["torch", "python"] = "torch",
    *,
    remove_cm_motion: bool = True,
    **options: Any,
) -> "openmm.System":
    """A complete System in which the potential gives all forces.

    Particles have the masses of their elements and there are no constraints, so the time step has
    to resolve the vibrations of hydrogen (0.5 fs). Box vectors are those of the topology. In a box,
    bonds of the topology tell OpenMM what a molecule is (a barostat moves molecules as a whole, and
    trajectories are wrapped by molecule); they add no energy.

    Args:
        topology: The molecules.
        potential: Path of the exported file (``potential.pt``), or a loaded one.
        engine: ``"torch"`` for :func:`torch_force`, ``"python"`` for :func:`python_force`.
        remove_cm_motion: Add a CMMotionRemover, as OpenMM's own force fields do: thermostats act on
            atoms and would let a molecule drift away. It costs an isolated system no energy
            conservation.
        **options: Of the force: ``periodic``, ``skin``, ``max_force``, ``device``, ``compile`` and the
            others.

    Raises:
        ConfigError: Unknown engine, a bad option, ``periodic=True`` without box vectors, or a box with no
            room for the atoms.
        CheckpointError, UnknownElementError, EngineError: As for :func:`torch_force`.
    """
    openmm = import_openmm()
    box = topology.getPeriodicBoxVectors()
    if box is None and options.get("periodic"):
        # OpenMM would take its default, a cube of 2 nm.
        raise ConfigError(
            "periodic=True needs a box, and the topology has none: give it one with "
            "topology.setPeriodicBoxVectors(...), or leave periodic out"
        )
    if box is not None and is_periodic(topology, options.get("periodic")):
        check_volume(box, topology.getNumAtoms())
    force = choose_engine(engine)(potential, topology, **options)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(0.0 if atom.element is None else atom.element.mass)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
        connect_molecules(system, [(a.index, b.index) for a, b in topology.bonds()])
    system.addForce(force)
    if remove_cm_motion:
        system.addForce(openmm.CMMotionRemover())
    return system


def check_volume(box: Any, atoms: int) -> None:
    """Refuse the cell of 1 Å³ by which some PDB files say that they have none.

    Args:
        box: Box vectors of a topology.
        atoms: Their number.

    Raises:
        ConfigError: They have no room in it.
    """
    angstrom = import_openmm().unit.angstrom
    # Three vectors, in a Quantity or each its own.
    cell = np.array([row.value_in_unit(angstrom) for row in box])
    volume = volume_without_room(cell, atoms)
    if volume is not None:
        raise ConfigError(
            f"the box has a volume of {volume:.3g} Å³ for {atoms} atoms; if it only stands for 'no box', "
            "as in some PDB files, say periodic=False, or take it away with "
            "topology.setPeriodicBoxVectors(None)"
        )
