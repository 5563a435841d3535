"""What the tests of OpenMM share: topologies, contexts, and a peptide in water."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openmm
import torch
from ase import Atoms
from openmm import app, unit

from calculators.openmm import ENERGY, FORCE
from forcefield import Potential, build_graph, build_potential, load_potential
from forcefield.export import export_potential
from forcefield.pretrained import BACKBONE

ROOT = Path(__file__).parents[2]
ENGINES = ("torch", "python")

WAYS = (*ENGINES, "compiled")
"""Of the fixture ``way``."""

FOLDER = TemporaryDirectory()
"""For exported files; goes when the tests end."""


def topology_of(atoms: Atoms, bonds: bool = False) -> "app.Topology":
    """One residue of all atoms; with bonds, of atoms closer than 1.2 Å."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in atoms.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    if bonds:
        all_atoms = list(topology.atoms())
        for first, second in np.argwhere(np.triu(atoms.get_all_distances(mic=True) < 1.2, k=1)):
            topology.addBond(all_atoms[first], all_atoms[second])
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(box_of(atoms))
    return topology


def box_of(atoms: Atoms) -> "unit.Quantity":
    return [openmm.Vec3(*row) for row in atoms.cell.array] * unit.angstrom


def context_of(system, positions, platform: str = "Reference", integrator=None):
    """A Context with positions set: those of an ASE structure, or an array or quantity in nm."""
    if integrator is None:
        integrator = openmm.VerletIntegrator(0.0001 * unit.picoseconds)
    properties = {"Threads": "1"} if platform == "CPU" else {}
    context = openmm.Context(
        system, integrator, openmm.Platform.getPlatformByName(platform), properties
    )
    if isinstance(positions, Atoms):
        positions = positions.positions * unit.angstrom
    context.setPositions(positions)
    return context


def evaluate(context, **state) -> tuple[float, np.ndarray]:
    """Energy in eV and forces in eV/Å."""
    state = context.getState(energy=True, forces=True, **state)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return energy / ENERGY, forces / FORCE


def eager(potential: Potential, atoms: Atoms) -> tuple[float, np.ndarray]:
    graph = build_graph(
        atoms.positions, atoms.numbers, potential.cutoff, atoms.cell.array, atoms.pbc
    )
    output = potential(*graph.tensors())
    return output["energy"].item(), output["forces"].numpy()


@cache
def peptide_file() -> Path:
    """An exported potential that knows nitrogen, with random weights in double precision."""
    state = torch.get_rng_state()
    torch.manual_seed(5)
    potential = build_potential(
        {"name": "hegnn", "cutoff": 4.0, "layers": 1, "features": 8, "channels": 2, "lmax": 2},
        [1, 6, 7, 8],
        energy_scale=10.0,
        reference_energies={1: -13.6, 6: -1029.0, 7: -1485.0, 8: -2041.0},
        avg_neighbors=8.0,
    ).to(torch.float64)
    torch.set_rng_state(state)
    path = Path(FOLDER.name) / "peptide.pt"
    export_potential(potential.eval().requires_grad_(False), path)
    return path


@cache
def general_file() -> Path:
    """The weights that ship with the package, exported."""
    path = Path(FOLDER.name) / "general.pt"
    export_potential(load_potential(BACKBONE)[0], path)
    return path


@dataclass(frozen=True)
class Solution:
    """A solute in water and its classical force field; positions in nm."""

    topology: "app.Topology"
    positions: np.ndarray
    forcefield: "app.ForceField"
    solute: list[int]

    def classical(self, **options) -> "openmm.System":
        """All of it by Amber; bonds under constraints keep their terms."""
        defaults = {
            "nonbondedMethod": app.PME,
            "nonbondedCutoff": 0.9 * unit.nanometer,
            "constraints": app.HBonds,
            "flexibleConstraints": True,
            "ewaldErrorTolerance": 1e-6,
        }
        return self.forcefield.createSystem(self.topology, **(defaults | options))

    def alone(self, atoms: list[int]) -> "tuple[app.Topology, np.ndarray]":
        """Some atoms as a topology without a box, and their positions."""
        modeller = app.Modeller(self.topology, self.positions * unit.nanometer)
        others = [atom for atom in self.topology.atoms() if atom.index not in set(atoms)]
        modeller.delete(others)
        modeller.topology.setPeriodicBoxVectors(None)
        return modeller.topology, self.positions[sorted(atoms)]


@cache
def peptide_in_water() -> Solution:
    """Alanine dipeptide (22 atoms) in some 200 TIP3P waters."""
    pdb = app.PDBFile(str(ROOT / "examples/alanine_dipeptide.pdb"))
    forcefield = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(forcefield, boxSize=openmm.Vec3(1.9, 1.9, 1.9) * unit.nanometer)
    atoms = modeller.topology.atoms()
    return Solution(
        topology=modeller.topology,
        positions=np.array(modeller.positions.value_in_unit(unit.nanometer)),
        forcefield=forcefield,
        solute=[atom.index for atom in atoms if atom.residue.name in ("ACE", "ALA", "NME")],
    )


@cache
def four_site_water() -> Solution:
    """A box of TIP4P-Ew; the solute are three neighbours, without their virtual sites."""
    forcefield = app.ForceField("amber14/tip4pew.xml")
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    box = openmm.Vec3(1.9, 1.9, 1.9) * unit.nanometer
    modeller.addSolvent(forcefield, model="tip4pew", boxSize=box)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    residues = [list(residue.atoms()) for residue in modeller.topology.residues()]
    oxygen = positions[[atoms[0].index for atoms in residues]]
    shift = oxygen - oxygen[0]
    shift -= 1.9 * np.round(shift / 1.9)
    nearest = np.argsort((shift**2).sum(axis=1))[:3]
    return Solution(
        topology=modeller.topology,
        positions=positions,
        forcefield=forcefield,
        solute=[a.index for i in nearest for a in residues[i] if a.element is not None],
    )
