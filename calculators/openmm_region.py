"""The classical description of a region: found in a System, taken out of it, set aside.

Mechanical embedding lets a potential replace what a force field says about a region in itself:

    E(mixed) = E(classical, everything) - E(classical, inside the region) + E(potential, region)

What is inside: bonded terms all of whose particles belong to the region, and the nonbonded
interactions of its pairs. What is left: all that a particle outside has a part in.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

import numpy as np

from calculators.openmm_particles import check_particles
from forcefield.errors import ConfigError

if TYPE_CHECKING:
    import openmm
    from openmm.app import Topology

BONDED = {
    "HarmonicBondForce": "Bonds",
    "CustomBondForce": "Bonds",
    "CustomCompoundBondForce": "Bonds",
    "HarmonicAngleForce": "Angles",
    "CustomAngleForce": "Angles",
    "PeriodicTorsionForce": "Torsions",
    "RBTorsionForce": "Torsions",
    "CMAPTorsionForce": "Torsions",
    "CustomTorsionForce": "Torsions",
}
"""Forces whose terms belong to the region or not, and where OpenMM's XML lists the terms."""

NONBONDED = frozenset({"NonbondedForce", "CustomNonbondedForce"})
"""Forces from which pairs can be excluded."""

NOT_OF_A_REGION = frozenset(
    {
        "AndersenThermostat",
        "CMMotionRemover",
        "CustomExternalForce",
        "MonteCarloAnisotropicBarostat",
        "MonteCarloBarostat",
        "MonteCarloFlexibleBarostat",
        "MonteCarloMembraneBarostat",
        "PythonForce",
        "TorchForce",
    }
)
"""Forces that have no classical energy inside a region, and stay as they are."""

MANY_BODY = {
    "GBSAOBCForce": "an implicit solvent",
    "CustomGBForce": "an implicit solvent",
    "LCPOForce": "an implicit solvent",
    "AmoebaGeneralizedKirkwoodForce": "an implicit solvent",
    "AmoebaWcaDispersionForce": "an implicit solvent",
    "AmoebaMultipoleForce": "a polarisable force field",
    "AmoebaVdwForce": "a polarisable force field",
    "AmoebaTorsionTorsionForce": "a polarisable force field",
    "HippoNonbondedForce": "a polarisable force field",
    "DrudeForce": "a polarisable force field",
}
"""Forces whose energy is no sum over pairs, so that none of it is the region's own."""


@dataclass(frozen=True)
class Region:
    """Which particles the potential describes.

    Attributes:
        atoms: Indices of the atoms that the potential sees, in the order it sees them, (n,).
        particles: Those and the virtual sites that are built on them alone, sorted.
        bonds: Covalent bonds inside, as far as topology and System tell.
    """

    atoms: np.ndarray
    particles: list[int]
    bonds: list[tuple[int, int]]


def find_region(
    topology: "Topology", system: "openmm.System", ml_atoms: Iterable[int], allow_cut_bonds: bool
) -> Region:
    """Check a choice of atoms, and find what belongs to them.

    Raises:
        ConfigError: Topology and System differ, atoms are missing or named twice, are all there are,
            or a covalent bond or a virtual site is cut.
    """
    size = system.getNumParticles()
    if topology.getNumAtoms() != size:
        raise ConfigError(
            f"the topology has {topology.getNumAtoms()} atoms and the System {size} particles; "
            "make the System from this topology"
        )
    atoms = check_particles(ml_atoms, size)
    if atoms is None:
        raise ConfigError("ml_atoms says which atoms the potential describes, found None")
    inside = {int(index) for index in atoms}
    sites = _virtual_sites(system, inside)
    if len(inside) + len(sites) == size:
        raise ConfigError(
            "the region holds every particle, nothing classical is left; use create_system"
        )
    bonds = _bonds(topology, system)
    cut = sorted((a, b) for a, b in bonds if (a in inside) != (b in inside))
    # A virtual site is no atom: "bonds" to it are a way of writing topologies.
    cut = [(a, b) for a, b in cut if not (system.isVirtualSite(a) or system.isVirtualSite(b))]
    if cut and not allow_cut_bonds:
        atoms_of = list(topology.atoms())
        named = ", ".join(f"{_label(atoms_of[a])} - {_label(atoms_of[b])}" for a, b in cut[:5])
        raise ConfigError(
            f"the region cuts {len(cut)} covalent bond{'s' * (len(cut) > 1)}: {named}"
            f"{', ...' * (len(cut) > 5)}; take whole molecules (allow_cut_bonds=True leaves the ends "
            "open; MLPotential('hegnn') of openmm-ml caps them with hydrogen)"
        )
    return Region(
        atoms=atoms,
        particles=sorted(inside | sites),
        bonds=[(a, b) for a, b in bonds if a in inside and b in inside],
    )


def _label(atom: Any) -> str:
    return f"{atom.name} {atom.index} ({atom.residue.name} {atom.residue.id})"


def _virtual_sites(system: "openmm.System", inside: set[int]) -> set[int]:
    """Virtual sites all of whose parents are in the region."""
    sites = set()
    for index in range(system.getNumParticles()):
        if index in inside or not system.isVirtualSite(index):
            continue
        site = system.getVirtualSite(index)
        parents = [site.getParticle(k) for k in range(site.getNumParticles())]
        if all(parent in inside for parent in parents):
            sites.add(index)
        elif any(parent in inside for parent in parents):
            raise ConfigError(
                f"the virtual site {index} is built on particles inside and outside the region "
                f"({parents}); take the whole molecule"
            )
    return sites


def _bonds(topology: "Topology", system: "openmm.System") -> list[tuple[int, int]]:
    """Covalent bonds of the topology; without any there, the bonds of the force field.

    Constraints count in both cases.
    """
    import openmm

    pairs = {(bond.atom1.index, bond.atom2.index) for bond in topology.bonds()}
    if not pairs:
        for force in system.getForces():
            if isinstance(force, openmm.HarmonicBondForce):
                terms = [force.getBondParameters(i)[:2] for i in range(force.getNumBonds())]
                pairs |= {(first, second) for first, second in terms}
    constraints = [system.getConstraintParameters(i)[:2] for i in range(system.getNumConstraints())]
    pairs |= {(first, second) for first, second in constraints}
    return sorted({(min(pair), max(pair)) for pair in pairs})


def check_forces(root: Element) -> None:
    """Refuse a System with a force that cannot be split into inside and outside.

    Args:
        root: XML of the System.

    Raises:
        ConfigError: Names the force and why.
    """
    for force in root.findall("Forces/Force"):
        kind = force.get("type", "?")
        if kind in MANY_BODY:
            raise ConfigError(
                f"the System holds a {kind}, part of {MANY_BODY[kind]}: its energy is no sum over "
                "pairs, so the region's share cannot be taken out; use explicit solvent and a force "
                "field with fixed charges"
            )
        if kind not in BONDED and kind not in NONBONDED and kind not in NOT_OF_A_REGION:
            raise ConfigError(
                f"the System holds a {kind}, and which part of it is the region's own is not known; "
                "make the mixed System without it, and add it afterwards if it is a bias or restraint"
            )


def take_out_bonded(root: Element, particles: Sequence[int]) -> list[Element]:
    """Remove bonded terms inside a region from a System's XML.

    Args:
        root: XML of the System; is changed.
        particles: Particles of the region.

    Returns:
        XML of forces with the removed terms alone.
    """
    inside = {str(index) for index in particles}
    taken = []
    for force in root.findall("Forces/Force"):
        path = BONDED.get(force.get("type", ""), "none")
        terms = force.find(path)
        if terms is None:
            continue
        own: list[Element] = []
        others: list[Element] = []
        for term in terms:
            (own if inside.issuperset(_particles(term)) else others).append(term)
        if own:
            terms[:] = own
            taken.append(copy.deepcopy(force))
            terms[:] = others
    return taken


def _particles(term: Element) -> list[str]:
    """Indices in a bonded term: p1, p2, ...; those of a CMAP term are called a1 to b4."""
    return [value for name, value in term.attrib.items() if re.fullmatch(r"[pab]\d+", name)]


def exclude_pairs(system: "openmm.System", particles: Sequence[int]) -> None:
    """Switch off the nonbonded interactions of a region's pairs.

    In a periodic box every pair's nearest image is switched off. What remains of long-range
    electrostatics is the interaction with images further away.

    Args:
        system: Is changed.
        particles: Particles of the region.

    Raises:
        ConfigError: A global parameter scales one of these pairs.
    """
    import openmm

    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            _check_offsets(force, set(particles))
            for first, second in combinations(particles, 2):
                force.addException(first, second, 0.0, 1.0, 0.0, True)
            if force.usesPeriodicBoundaryConditions():
                # Molecules of the region may lie in different images of the box.
                force.setExceptionsUsePeriodicBoundaryConditions(True)
        elif isinstance(force, openmm.CustomNonbondedForce):
            known = [force.getExclusionParticles(i) for i in range(force.getNumExclusions())]
            known_pairs = {(min(pair), max(pair)) for pair in known}
            for pair in combinations(particles, 2):
                if pair not in known_pairs:
                    force.addExclusion(*pair)


def _check_offsets(force: "openmm.NonbondedForce", inside: set[int]) -> None:
    for index in range(force.getNumExceptionParameterOffsets()):
        parameter, exception = force.getExceptionParameterOffset(index)[:2]
        first, second = force.getExceptionParameters(exception)[:2]
        if first in inside and second in inside:
            raise ConfigError(
                f"the global parameter {parameter!r} scales the pair {first}, {second} of the "
                "region, whose classical interaction is to be removed"
            )


def free_constraints(system: "openmm.System", particles: Sequence[int]) -> list[tuple[int, int]]:
    """Remove a region's constraints; returns the pairs that they were on."""
    inside = set(particles)
    removed = []
    for index in reversed(range(system.getNumConstraints())):
        first, second, _ = system.getConstraintParameters(index)
        if first in inside and second in inside:
            system.removeConstraint(index)
            removed.append((min(first, second), max(first, second)))
    return sorted(removed)


def connect_molecules(system: "openmm.System", bonds: Sequence[tuple[int, int]]) -> None:
    """Tell OpenMM which particles are a molecule, by bonds without strength.

    OpenMM finds molecules by the bonds of its own forces. Without any, a barostat moves every atom by
    itself, and wrapping a trajectory into the box tears molecules apart.

    Args:
        system: Gets one more force, of no energy, if there are bonds.
        bonds: Pairs of particles.
    """
    import openmm

    if not bonds:
        return
    force = openmm.HarmonicBondForce()
    force.setName("molecules")
    for first, second in bonds:
        force.addBond(first, second, 0.1, 0.0)
    system.addForce(force)
