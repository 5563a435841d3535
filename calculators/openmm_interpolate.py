"""From a force field to a potential by a global parameter: the classical side.

What the force field says about a region in itself is kept, times 1 - lambda. Bonded terms are OpenMM's
own. Nonbonded pairs are written out, which is exact and costs nothing next to the rest of the System:
no second Ewald sum is needed, and cutoffs, switching and reaction field are those of the System.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import ase.units

from forcefield.errors import ConfigError
from forcefield.units import KJ_PER_MOL, NANOMETER

if TYPE_CHECKING:
    import openmm

LAMBDA = "lambda_interpolate"
"""Global parameter of an interpolated System: 0 is the force field, 1 the mixed description."""

COULOMB = ase.units.Hartree * ase.units.Bohr / (KJ_PER_MOL * NANOMETER)
"""Energy of two elementary charges, kJ/mol nm."""


def inside_nonbonded(system: "openmm.System", particles: Sequence[int]) -> list["openmm.Force"]:
    """Forces that give the nonbonded energy of a region's pairs, as the System has it now.

    Raises:
        ConfigError: A NonbondedForce uses LJPME, or a global parameter changes particles of the
            region.
    """
    import openmm

    forces: list[openmm.Force] = []
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            forces += _pair_forces(force, particles)
        elif isinstance(force, openmm.CustomNonbondedForce):
            forces.append(_restricted(force, set(particles)))
    return forces


def _pair_forces(
    force: "openmm.NonbondedForce", particles: Sequence[int]
) -> list["openmm.CustomBondForce"]:
    """Coulomb and Lennard-Jones energies of a region's pairs: exceptions, and all others."""
    if force.getNonbondedMethod() == force.LJPME:
        raise ConfigError(
            "interpolate does not know the pair energies of LJPME; use PME with a cutoff for "
            "Lennard-Jones terms"
        )
    inside = set(particles)
    for index in range(force.getNumParticleParameterOffsets()):
        parameter, particle = force.getParticleParameterOffset(index)[:2]
        if particle in inside:
            raise ConfigError(
                f"the global parameter {parameter!r} changes particle {particle} of the region; "
                "interpolate needs fixed charges and Lennard-Jones parameters there"
            )
    exceptions = {}
    for index in range(force.getNumExceptions()):
        first, second, *values = force.getExceptionParameters(index)
        exceptions[min(first, second), max(first, second)] = [value._value for value in values]
    atoms = {i: [value._value for value in force.getParticleParameters(i)] for i in particles}
    periodic = force.usesPeriodicBoundaryConditions()
    without_cutoff = _pair_force(_bare_energy(), periodic)
    with_cutoff = _pair_force(_cutoff_energy(force), periodic)
    for pair in combinations(particles, 2):
        if pair in exceptions:
            target, (charges, sigma, epsilon) = without_cutoff, exceptions[pair]
        else:
            target = with_cutoff
            (charge, sigma, epsilon), (charge2, sigma2, epsilon2) = atoms[pair[0]], atoms[pair[1]]
            charges, sigma = charge * charge2, 0.5 * (sigma + sigma2)
            epsilon = math.sqrt(epsilon * epsilon2)
        if charges or epsilon:
            target.addBond(*pair, [charges, sigma, epsilon])
    return [pairs for pairs in (without_cutoff, with_cutoff) if pairs.getNumBonds()]


def _pair_force(energy: str, periodic: bool) -> "openmm.CustomBondForce":
    import openmm

    force = openmm.CustomBondForce(energy)
    for name in ("charges", "sigma", "epsilon"):
        force.addPerBondParameter(name)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _bare_energy() -> str:
    return f"{COULOMB!r}*charges/r + 4*epsilon*((sigma/r)^12-(sigma/r)^6)"


def _cutoff_energy(force: "openmm.NonbondedForce") -> str:
    """Energy of a pair that is no exception.

    The Ewald sum of a pair is its Coulomb energy, whatever the cutoff. With a plain cutoff OpenMM
    uses a reaction field (Tironi et al., J. Chem. Phys. 102, 5451, 1995):
    q q' (1/r + k r² - c), k = (ε - 1) / ((2 ε + 1) rc³), c = 3 ε / ((2 ε + 1) rc).
    """
    method = force.getNonbondedMethod()
    if method == force.NoCutoff:
        return _bare_energy()
    cutoff = force.getCutoffDistance()._value
    coulomb, definitions = "1/r", ""
    if method in (force.CutoffNonPeriodic, force.CutoffPeriodic):
        dielectric = force.getReactionFieldDielectric()
        k = (dielectric - 1.0) / ((2.0 * dielectric + 1.0) * cutoff**3)
        c = 3.0 * dielectric / ((2.0 * dielectric + 1.0) * cutoff)
        coulomb = f"step({cutoff!r}-r)*(1/r+{k!r}*r^2-{c!r})"
    switch = "1"
    if force.getUseSwitchingFunction():
        start = force.getSwitchingDistance()._value
        switch = "(1-x^3*(10-x*(15-6*x)))"
        definitions = f"; x=max(0, r-{start!r})/{cutoff - start!r}"
    return (
        f"{COULOMB!r}*charges*{coulomb} + step({cutoff!r}-r)*{switch}"
        f"*4*epsilon*((sigma/r)^12-(sigma/r)^6){definitions}"
    )


def _restricted(
    force: "openmm.CustomNonbondedForce", inside: set[int]
) -> "openmm.CustomNonbondedForce":
    """A copy that acts between particles of the region only."""
    alone = copy.deepcopy(force)
    alone.setUseLongRangeCorrection(False)  # an average over the whole box, which stays
    groups = force.getNumInteractionGroups()
    for index in range(groups):
        first, second = force.getInteractionGroupParameters(index)
        alone.setInteractionGroupParameters(index, inside & set(first), inside & set(second))
    if not groups:
        alone.addInteractionGroup(inside, inside)
    return alone


def check_freed(freed: Iterable[tuple[int, int]], inside: Sequence["openmm.Force"]) -> None:
    """Refuse to free a distance that no term of the force field holds at lambda 0."""
    import openmm

    held = set()
    for force in inside:
        if isinstance(force, openmm.HarmonicBondForce | openmm.CustomBondForce):
            terms = [force.getBondParameters(i)[:2] for i in range(force.getNumBonds())]
            held |= {(min(term), max(term)) for term in terms}
        elif isinstance(force, openmm.HarmonicAngleForce | openmm.CustomAngleForce):
            ends = [force.getAngleParameters(i)[0:3:2] for i in range(force.getNumAngles())]
            held |= {(min(term), max(term)) for term in ends}
    for first, second in freed:
        if (first, second) not in held:
            raise ConfigError(
                f"particles {first} and {second} of the region are held by a constraint alone, and "
                "would fly apart at lambda_interpolate = 0; make the classical System with "
                "flexibleConstraints=True, or without constraints"
            )


def add_fading(system: "openmm.System", inside: Sequence["openmm.Force"]) -> None:
    """Add what the force field says about the region, times 1 - lambda."""
    import openmm

    if not inside:
        return
    names = [f"inside{index}" for index in range(len(inside))]
    fading = openmm.CustomCVForce(f"(1-{LAMBDA})*({'+'.join(names)})")
    fading.setName("classical region")
    fading.addGlobalParameter(LAMBDA, 1.0)
    for name, force in zip(names, inside, strict=True):
        fading.addCollectiveVariable(name, force)
    system.addForce(fading)
