"""Systems of OpenMM in which a potential describes some molecules, a force field all others.

    from calculators.openmm import create_mixed_system
    classical = forcefield.createSystem(topology, nonbondedMethod=app.PME, rigidWater=True)
    system = create_mixed_system(topology, classical, ml_atoms, "potential.pt")

Mechanical embedding, the definition is in :mod:`calculators.openmm_region`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from calculators.openmm_forces import PotentialSource, choose_engine, import_openmm
from calculators.openmm_interpolate import LAMBDA, add_fading, check_freed, inside_nonbonded
from calculators.openmm_region import (
    check_forces,
    connect_molecules,
    exclude_pairs,
    find_region,
    free_constraints,
    take_out_bonded,
)
from calculators.openmm_xml import forces_from_tree, system_from_tree, system_tree

if TYPE_CHECKING:
    import openmm
    from openmm.app import Topology


def create_mixed_system(
    topology: "Topology",
    system: "openmm.System",
    ml_atoms: Iterable[int],
    potential: PotentialSource,
    engine: Literal["torch", "python"] = "torch",
    *,
    interpolate: bool = False,
    remove_constraints: bool = True,
    allow_cut_bonds: bool = False,
    **options: Any,
) -> "openmm.System":
    """A System in which the potential gives the internal energy of some molecules.

    Interactions between the region and everything else stay those of the force field: charges,
    Lennard-Jones terms, and also any restraint that reaches out of the region. In a periodic box the
    region sees its own images through the potential if they come within the cutoff.

    With ``interpolate`` there is a global parameter ``lambda_interpolate``, 1 by default: the energy
    is linear in it, that of the force field at 0 and that of the mixed System at 1. The difference
    of the two is the derivative that thermodynamic integration wants. The energy of the potential
    counts from free electrons and nuclei or whatever its training data did, so the two descriptions
    differ by a large constant.

    Args:
        topology: Of the whole System.
        system: All of it described by a force field; stays as it is.
        ml_atoms: Indices of the atoms that the potential describes, whole molecules. Virtual sites
            that are built on them alone belong to them.
        potential: Path of the exported file (``potential.pt``), or a loaded one.
        engine: ``"torch"`` or ``"python"``, see :func:`calculators.openmm.create_system`.
        interpolate: Make the change gradual.
        remove_constraints: Remove constraints inside the region: the potential is trained on
            molecules that vibrate. The time step has to suit them then (0.5 fs).
        allow_cut_bonds: Accept a region that ends in the middle of a molecule. Nothing is put in the
            place of the atoms beyond: the potential sees open valences, which is rarely wanted.
        **options: Of the force: ``skin``, ``max_force``, ``device``, ``compile``, ``cuda_graphs``, ... ;
            ``periodic`` follows the System.

    Raises:
        ConfigError: The choice of atoms makes no sense, a bond is cut, or the System holds a force
            that cannot be split (implicit solvent, polarisation, a bias); names it and what to do.
        CheckpointError, UnknownElementError, EngineError: As for
            :func:`calculators.openmm.torch_force`.
    """
    import_openmm()
    make_force = choose_engine(engine)
    region = find_region(topology, system, ml_atoms, allow_cut_bonds)
    options.setdefault("periodic", system.usesPeriodicBoundaryConditions())
    if interpolate:
        options["scale_parameter"] = LAMBDA
    force = make_force(potential, topology, particles=region.atoms, **options)

    root = system_tree(system)
    check_forces(root)
    bonded = take_out_bonded(root, region.particles)
    mixed = system_from_tree(root)
    freed = free_constraints(mixed, region.particles) if remove_constraints else []
    if interpolate:
        inside = forces_from_tree(bonded, mixed.getNumParticles())
        check_freed(freed, inside)
        add_fading(mixed, inside + inside_nonbonded(mixed, region.particles))
    exclude_pairs(mixed, region.particles)
    if mixed.usesPeriodicBoundaryConditions():
        connect_molecules(mixed, region.bonds)
    mixed.addForce(force)
    return mixed
