"""What chemists do with ASE, with the general potential: minima, barriers, vibrations, dynamics."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.vibrations import Vibrations

from calculators import CommitteeCalculator, PotentialCalculator, calculate_many, vibrations
from calculators.evaluator import open_potential
from forcefield import load_exported
from forcefield.errors import ConfigError, InvalidStructureError
from forcefield.export import ExportedPotential
from tests.integration.general_potential import general_file

FEMTOSECOND = units.fs
DIAMOND = 3.590
"""Å; the lattice constant of this potential (3.567 in nature)."""


@pytest.fixture(scope="module")
def general() -> ExportedPotential:
    """The weights that ship with the package."""
    return load_exported(general_file())


@pytest.fixture(scope="module")
def precise(general) -> ExportedPotential:
    """The same in double precision."""
    return open_potential(general, dtype=torch.float64)


def relaxed(atoms: Atoms, potential: ExportedPotential, fmax: float = 0.002) -> Atoms:
    atoms.calc = PotentialCalculator(potential)
    assert BFGS(atoms, logfile=None).run(fmax=fmax, steps=200)
    return atoms


def test_water_relaxes_to_its_geometry(general):
    water = relaxed(molecule("H2O"), general)
    assert np.linalg.norm(water.get_forces(), axis=1).max() < 0.002
    assert water.get_distance(0, 1) == pytest.approx(0.958, abs=0.01)
    assert water.get_angle(1, 0, 2) == pytest.approx(104.5, abs=3.0)


def test_diamond_relaxes_with_its_cell(precise):
    """From a stretched, sheared cell with displaced atoms; the cutoff is twice the cell."""
    crystal = bulk("C", "diamond", a=3.7)
    crystal.set_cell(crystal.cell.array @ [[1, 0.02, 0], [0, 0.98, 0], [0.01, 0, 1]], True)
    crystal.rattle(0.03, seed=0)
    crystal.calc = PotentialCalculator(precise)
    assert FIRE(FrechetCellFilter(crystal), logfile=None).run(fmax=0.002, steps=300)
    lengths, angles = crystal.cell.cellpar()[:3], crystal.cell.cellpar()[3:]
    np.testing.assert_allclose(np.sqrt(2.0) * lengths, DIAMOND, atol=0.01)
    np.testing.assert_allclose(angles, 60.0, atol=0.1)
    np.testing.assert_allclose(crystal.get_stress(), 0.0, atol=1e-3)
    assert crystal.get_distance(0, 1, mic=True) == pytest.approx(
        DIAMOND * np.sqrt(3) / 4, abs=0.005
    )


def barrier(start: Atoms, end: Atoms, potential: ExportedPotential) -> tuple[float, Atoms]:
    """Height of the barrier, eV, and the structure on top of it."""
    images = [start, *(start.copy() for _ in range(5)), end]
    for image in images[1:-1]:
        image.calc = PotentialCalculator(potential)
    band = NEB(images, climb=True, remove_rotation_and_translation=True, method="improvedtangent")
    band.interpolate("idpp")
    assert FIRE(band, logfile=None).run(fmax=0.03, steps=300)
    energies = [image.get_potential_energy() for image in images]
    top = int(np.argmax(energies))
    return energies[top] - energies[0], images[top]


def test_ammonia_turns_inside_out(precise):
    """0.25 eV in nature; flat at the top, with one imaginary frequency."""
    start = relaxed(molecule("NH3"), precise)
    end = start.copy()
    end.positions[:, 2] *= -1.0
    end = relaxed(end, precise)
    height, top = barrier(start, end, precise)
    assert height == pytest.approx(0.25, abs=0.05)
    assert np.ptp(top.positions[:, 2]) < 0.01
    frequencies = vibrations(top).get_frequencies()
    assert np.count_nonzero(frequencies.imag > 200.0) == 1
    assert np.count_nonzero(frequencies.real > 200.0) == 5


@pytest.mark.slow
def test_ethane_rotates(precise):
    """0.126 eV in nature."""
    start = relaxed(molecule("C2H6"), precise)
    end = start.copy()
    upper = [k for k in range(8) if start.numbers[k] == 1 and start.positions[k, 2] > 0.0]
    methyl = end[upper]
    methyl.rotate(120.0, "z")
    end.positions[upper] = methyl.positions
    height, _ = barrier(start, relaxed(end, precise), precise)
    assert height == pytest.approx(0.126, abs=0.02)


def displaced_forces(atoms: Atoms, potential: ExportedPotential, step: float) -> np.ndarray:
    """The Hessian by central differences of forces, (3n, 3n)."""
    frames = []
    for component in range(3 * len(atoms)):
        for sign in (1.0, -1.0):
            frame = atoms.copy()
            frame.positions.flat[component] += sign * step
            frames.append(frame)
    forces = np.array([r["forces"].ravel() for r in calculate_many(potential, frames)])
    return -(forces[0::2] - forces[1::2]) / (2.0 * step)


def test_the_hessian_is_the_derivative_of_the_forces(precise):
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.05, seed=1)
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.05, seed=2)
    far = Atoms("H2", [[0, 0, 0], [0.8, 0, 0]]) + Atoms("H2", [[0, 30, 0], [0.7, 30, 0]])
    for atoms in (ethanol, crystal, far):
        calculator = PotentialCalculator(precise)
        coarse, fine = (displaced_forces(atoms, precise, step) for step in (1e-3, 5e-4))
        expected = fine + (fine - coarse) / 3.0  # without the error of second order
        for _ in range(3):  # TorchScript compiles during the first calls
            matrix = calculator.get_hessian(atoms)
            np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-6 * np.abs(matrix).max())
        np.testing.assert_array_equal(matrix, matrix.T)
        # Moving everything along costs no force.
        rows = matrix.reshape(len(matrix), -1, 3).sum(axis=1)
        np.testing.assert_allclose(rows, 0.0, atol=1e-9 * np.abs(matrix).max())


def test_a_single_precision_potential_has_a_double_precision_hessian(general, precise):
    water = molecule("H2O")
    single = PotentialCalculator(general)
    single.get_forces(water)
    np.testing.assert_array_equal(
        single.get_hessian(), PotentialCalculator(precise).get_hessian(water)
    )
    assert general.dtype == torch.float32
    committee = CommitteeCalculator([general, precise])
    np.testing.assert_array_equal(committee.get_hessian(water), single.get_hessian(water))


def test_a_hessian_where_there_is_none(general):
    calculator = PotentialCalculator(general)
    np.testing.assert_array_equal(calculator.get_hessian(Atoms("O")), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="structure"):
        PotentialCalculator(general).get_hessian()
    with pytest.raises(InvalidStructureError, match=r"atom 0 \(O\) and atom 1 \(H\) lie on top"):
        calculator.get_hessian(Atoms("OH", [[0, 0, 0], [0, 0, 0]]))


def test_vibrations_are_those_of_ase(precise, tmp_path):
    methanol = relaxed(molecule("CH3OH"), precise, fmax=2e-4)
    found = vibrations(methanol)
    displaced = Vibrations(methanol, name=str(tmp_path / "vibrations"), delta=0.002)
    displaced.run()
    expected = displaced.get_frequencies()
    np.testing.assert_allclose(found.get_frequencies()[6:].real, expected[6:].real, atol=0.5)
    # Translations and rotations: nearer to zero without displacements.
    assert np.abs(found.get_frequencies()[:6]).max() < 12.0
    assert 3500.0 < found.get_frequencies()[-1].real < 4000.0
    assert found.get_zero_point_energy() == pytest.approx(
        displaced.get_zero_point_energy(), abs=1e-3
    )


def test_vibrations_leave_fixed_atoms_out(precise, tmp_path):
    methanol = relaxed(molecule("CH3OH"), precise)
    methanol.set_constraint(FixAtoms([0, 1, 5]))
    found = vibrations(methanol)
    displaced = Vibrations(methanol, name=str(tmp_path / "fixed"), indices=[2, 3, 4], delta=0.002)
    displaced.run()
    assert len(found.get_frequencies()) == 9
    np.testing.assert_allclose(
        found.get_frequencies().real, displaced.get_frequencies().real, atol=0.5
    )


def test_vibrations_need_a_calculator_that_knows_them():
    with pytest.raises(ConfigError, match="found no calculator"):
        vibrations(molecule("H2O"))


def test_nve_keeps_energy_and_momentum(general):
    ethanol = relaxed(molecule("CH3CH2OH"), general, fmax=0.05)
    thermalize_momenta(ethanol, 300.0, rng=np.random.default_rng(0))
    momentum = ethanol.get_momenta().sum(axis=0)
    totals: list[float] = []
    dynamics = VelocityVerlet(ethanol, 0.5 * FEMTOSECOND)
    dynamics.attach(lambda: totals.append(ethanol.get_total_energy()))
    dynamics.run(250)
    assert np.ptp(totals) / 9 < 3e-3
    assert abs(np.mean(totals[-80:]) - np.mean(totals[:80])) / 9 < 5e-4
    np.testing.assert_allclose(ethanol.get_momenta().sum(axis=0), momentum, atol=1e-4)


def test_langevin_holds_the_temperature_and_the_constraints(general):
    ethanol = relaxed(molecule("CH3CH2OH"), general, fmax=0.05)
    start = ethanol.positions.copy()
    ethanol.set_constraint([FixAtoms([0]), FixBondLength(2, 3)])
    length = ethanol.get_distance(2, 3)
    thermalize_momenta(ethanol, 300.0, rng=np.random.default_rng(0))
    temperatures: list[float] = []
    dynamics = Langevin(
        ethanol,
        0.5 * FEMTOSECOND,
        temperature_K=300.0,
        friction=0.05 / FEMTOSECOND,
        fixcm=False,
        rng=np.random.default_rng(1),
    )
    dynamics.attach(lambda: temperatures.append(ethanol.get_temperature()))
    dynamics.run(350)
    assert np.mean(temperatures[50:]) == pytest.approx(300.0, abs=90.0)
    np.testing.assert_array_equal(ethanol.positions[0], start[0])
    assert ethanol.get_distance(2, 3) == pytest.approx(length, abs=1e-6)
    assert np.abs(ethanol.positions - start).max() > 0.1


def barostats():
    options = {"timestep": FEMTOSECOND, "temperature_K": 300.0}
    chain = options | {"tdamp": 50 * FEMTOSECOND}
    barostat = chain | {"pressure_au": 0.0, "pdamp": 150 * FEMTOSECOND}
    berendsen = options | {
        "pressure_au": 0.0,
        "taut": 50 * FEMTOSECOND,
        "taup": 200 * FEMTOSECOND,
        "compressibility_au": 2e-3 / units.GPa,
    }
    return [
        pytest.param(NoseHooverChainNVT, chain, id="Nosé-Hoover chain"),
        pytest.param(MTKNPT, barostat, id="MTK"),
        pytest.param(IsotropicMTKNPT, barostat, id="isotropic MTK", marks=pytest.mark.slow),
        pytest.param(NPTBerendsen, berendsen, id="Berendsen", marks=pytest.mark.slow),
    ]


@pytest.mark.parametrize(("method", "options"), barostats())
def test_thermostats_and_barostats(method, options, general):
    """Diamond, 2 % too large and at 300 K; the list of neighbours is kept while the cell moves."""
    crystal = bulk("C", "diamond", a=1.007 * DIAMOND, cubic=True)
    calculator = crystal.calc = PotentialCalculator(general)
    thermalize_momenta(crystal, 300.0, rng=np.random.default_rng(0))
    volume = crystal.get_volume()
    dynamics = method(crystal, **options)
    volumes: list[float] = []
    temperatures: list[float] = []
    conserved: list[float] = []
    dynamics.attach(lambda: volumes.append(crystal.get_volume()))
    dynamics.attach(lambda: temperatures.append(crystal.get_temperature()))
    if hasattr(dynamics, "get_conserved_energy"):
        dynamics.attach(lambda: conserved.append(dynamics.get_conserved_energy()))
    dynamics.run(100)
    # Eight atoms: it swings; half of it has gone into the bonds, and comes back.
    assert 120.0 < np.mean(temperatures) < 400.0
    assert calculator.evaluator.neighbors.builds < 15
    if method is NoseHooverChainNVT:
        assert volumes[-1] == volume
    else:
        assert min(volumes) < 0.995 * volume
        assert min(volumes) > 0.95 * volume
    if conserved:
        assert np.ptp(conserved) / len(crystal) < 4e-3
