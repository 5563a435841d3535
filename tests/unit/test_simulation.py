"""The parts of a simulation: quantities, settings, structures, velocities, thermostat, files."""

import struct
import sys

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import write

from calculators.simulation.engine import (
    Sample,
    angular_momentum,
    degrees_of_freedom,
    starting_velocities,
)
from calculators.simulation.nose_hoover import NoseHooverChain
from calculators.simulation.openmm_engine import openmm_platform
from calculators.simulation.quantities import (
    parse_pressure,
    parse_rate,
    parse_temperature,
    parse_time,
    parse_wall_time,
)
from calculators.simulation.record import density, distance_edges
from calculators.simulation.settings import SimulationSettings, changed_settings, make_settings
from calculators.simulation.stability import find_bonds
from calculators.simulation.structure import molecules, prepare_structure, read_structure
from calculators.simulation.topology import name_residues, write_pdb
from calculators.simulation.trajectory import DCDWriter, read_dcd
from forcefield.errors import ConfigError, EngineError, InvalidStructureError


def settings_of(**values) -> SimulationSettings:
    return make_settings({"potential": "p.pt", **values})


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_time, "10ps", 10.0),
        (parse_time, "0.5 fs", 0.0005),
        (parse_time, "1e-3ns", 1.0),
        (parse_time, 2, 2.0),
        (parse_temperature, "300", 300.0),
        (parse_temperature, "298.15 K", 298.15),
        (parse_rate, "1/ps", 1.0),
        (parse_rate, "0.01 / fs", 10.0),
        (parse_rate, "5 ps^-1", 5.0),
        (parse_rate, "5ps-1", 5.0),
        (parse_rate, "2.0 /ps", 2.0),
        (parse_pressure, "1 atm", 1.01325),
        (parse_pressure, "0.1MPa", 1.0),
        (parse_pressure, "1GPa", 1e4),
        (parse_wall_time, "2min", 120.0),
    ],
)
def test_quantities(parse, text, value):
    assert parse(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_time, "10", "has no unit; write it like 10ps"),
        (parse_time, "ten ps", "not a number with a unit"),
        (parse_time, "10 minutes", "unknown unit 'minutes'"),
        (parse_rate, "1", "not a rate with a unit"),
        (parse_rate, "1/s", "unknown unit of time 's'"),
        (parse_pressure, "1psi", "known are bar"),
        (parse_temperature, "20C", "unknown unit 'C'"),
    ],
)
def test_quantities_that_are_none(parse, text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_settings_survive_their_file():
    settings = settings_of(time="0.1ps", timestep="0.3fs", friction="7/ps", pressure="1atm")
    stored = settings.model_dump(mode="json")
    assert stored["timestep"] == "0.0003 ps"
    assert make_settings(stored) == settings
    other = make_settings({**stored, "time": "1ns"})
    assert changed_settings(settings, other) == {"time": ("0.1 ps", "1000.0 ps")}


@pytest.mark.parametrize(
    ("time", "every", "steps"), [("10ps", 20, 20_000), ("1ps", 300, 2100), ("0.3fs", 1, 1)]
)
def test_runs_are_whole_intervals(time, every, steps):
    assert settings_of(time=time, every=every).steps == steps


def test_mistakes_in_settings_are_named_line_by_line():
    with pytest.raises(ConfigError) as caught:
        settings_of(ensemble="nvx", time="1", tempreture=300, every=0)
    message = str(caught.value)
    assert "--ensemble must be 'nve', 'nvt' or 'npt', found 'nvx'" in message
    assert "--time: '1' has no unit" in message
    assert "did you mean 'temperature'?" in message
    assert "--every" in message
    assert len(message.splitlines()) == 4
    with pytest.raises(ConfigError, match="langevin thermostat"):
        settings_of(engine="ase", ensemble="npt", thermostat="nose-hoover")
    with pytest.raises(ConfigError, match="above 0 K"):
        settings_of(temperature="0K")


def box_of_water(cell: np.ndarray) -> Atoms:
    """Three molecules in a cell, wrapped, so that walls cut them."""
    atoms = Atoms()
    for shift in (0.0, 0.34, 0.67):
        water = molecule("H2O")
        water.rotate(300.0 * shift, (1, 1, 0))
        water.translate(shift * cell.sum(axis=0) - 0.1)
        atoms += water
    atoms.set_cell(cell)
    atoms.pbc = True
    atoms.wrap()
    return atoms


CELLS = {
    "cubic": np.diag([9.0, 9.0, 9.0]),
    "turned": np.array([[0.0, 9.0, 0.0], [0.0, 0.5, 9.5], [8.5, 1.0, 0.3]]),
    "left-handed": np.array([[9.0, 0.0, 0.0], [0.0, 0.0, 9.5], [0.2, 8.0, 0.0]]),
    "not reduced": np.array([[9.0, 0.0, 0.0], [8.0, 9.0, 0.0], [-7.0, 13.0, 9.0]]),
}


@pytest.mark.parametrize("name", CELLS)
def test_periodic_structures_are_put_in_order(name):
    atoms = box_of_water(CELLS[name])
    atoms.positions += 0.05 * np.random.default_rng(3).standard_normal(atoms.positions.shape)
    atoms.set_momenta(np.ones((9, 3)))
    prepared = prepare_structure(atoms, settings_of(ensemble="npt"))
    a, b, c = prepared.cell.array
    assert a[1] == a[2] == b[2] == pytest.approx(0.0, abs=1e-12)
    assert min(a[0], b[1], c[2]) > 0.0
    assert 2 * abs(b[0]) <= a[0] + 1e-9
    assert 2 * abs(c[0]) <= a[0] + 1e-9
    assert 2 * abs(c[1]) <= b[1] + 1e-9
    assert prepared.get_volume() == pytest.approx(atoms.get_volume())
    # The same crystal: all distances to nearest images, and the handedness of four atoms.
    np.testing.assert_allclose(
        prepared.get_all_distances(mic=True), atoms.get_all_distances(mic=True), atol=1e-9
    )
    chosen = [0, 1, 2, 3]
    vectors = [a.get_distances(0, chosen, mic=True, vector=True)[1:] for a in (prepared, atoms)]
    assert np.linalg.det(vectors[0]) == pytest.approx(np.linalg.det(vectors[1]))
    np.testing.assert_allclose(np.linalg.norm(prepared.get_momenta(), axis=1), np.sqrt(3.0))
    # Whole molecules, and no other atoms in them.
    bonds = find_bonds(prepared.numbers, prepared.positions, prepared.cell.array, prepared.pbc)
    straight = np.linalg.norm(np.subtract(*prepared.positions[bonds.pairs.T]), axis=1)
    np.testing.assert_allclose(straight, bonds.lengths)
    groups = [group.tolist() for group in molecules(prepared, bonds)]
    assert groups == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_network_is_not_a_molecule():
    crystal = prepare_structure(bulk("C", cubic=True), settings_of(ensemble="npt"))
    water = molecule("H2O")
    water.translate((1.8, 1.8, 40.0))
    crystal += water
    crystal.set_cell([3.57, 3.57, 50.0])
    bonds = find_bonds(crystal.numbers, crystal.positions, crystal.cell.array, crystal.pbc)
    groups = molecules(crystal, bonds)
    assert [len(group) for group in groups] == 8 * [1] + [3]


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        ({"positions": np.nan}, {}, r"position of atom 1 \(H\) is not finite"),
        ({"overlap": 0.01}, {}, r"atom 0 \(O\) and atom 1 \(H\) are 0\.01 Å apart"),
        ({"cell": 1.0}, {}, "--isolated"),
        ({"pbc": (True, True, False)}, {}, "--engine ase"),
        ({"pbc": (True, True, False)}, {"engine": "ase"}, "--format extxyz"),
        ({}, {"ensemble": "npt"}, "has no cell; choose --ensemble nvt"),
    ],
)
def test_structures_that_cannot_be_simulated(change, values, message):
    atoms = molecule("H2O")
    if "positions" in change:
        atoms.positions[1, 2] = change["positions"]
    if "overlap" in change:
        atoms.positions[1] = atoms.positions[0] + [change["overlap"], 0.0, 0.0]
    if "cell" in change:
        atoms.set_cell(3 * [change["cell"]])
        atoms.pbc = True
    if "pbc" in change:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = change["pbc"]
    with pytest.raises((InvalidStructureError, ConfigError), match=message):
        prepare_structure(atoms, settings_of(**values))


def test_the_cell_of_a_molecule_can_be_ignored():
    atoms = molecule("H2O", cell=[1.0, 1.0, 1.0], pbc=True)
    prepared = prepare_structure(atoms, settings_of(isolated=True))
    assert not prepared.pbc.any()
    assert not prepared.cell.array.any()


@pytest.mark.parametrize(
    ("name", "values", "freedom"),
    [
        ("CH3CH2OH", {"ensemble": "nve"}, 21),
        ("CH3CH2OH", {"ensemble": "nvt"}, 24),
        ("CO2", {"ensemble": "nve"}, 4),
    ],
)
def test_starting_velocities(name, values, freedom):
    atoms = molecule(name)
    settings = settings_of(temperature=300, **values)
    assert degrees_of_freedom(atoms, settings) == freedom
    masses = atoms.get_masses()
    kinetic = []
    for seed in range(400):
        velocities = starting_velocities(atoms, settings_of(seed=seed, **values))
        np.testing.assert_allclose(masses @ velocities, 0.0, atol=1e-12)
        spin = angular_momentum(masses, atoms.positions, velocities)
        assert (np.abs(spin).max() < 1e-10) == (settings.ensemble == "nve")
        kinetic.append(0.5 * masses @ (velocities**2).sum(axis=1))
    expected = 0.5 * freedom * units.kB * 300.0
    # Of 400 values with the relative width sqrt(2 / freedom)
    assert np.mean(kinetic) == pytest.approx(expected, rel=4 * np.sqrt(2 / freedom / 400))


@pytest.mark.parametrize(("before", "freedom"), [("nve", 21), ("nvt", 24)])
def test_angular_momentum_of_velocities_from_a_file(before, freedom, tmp_path):
    atoms = molecule("CH3CH2OH")
    settings = settings_of(ensemble="nve", velocities="file")
    with pytest.raises(ConfigError, match=r"final\.extxyz"):
        starting_velocities(atoms, settings)
    assert degrees_of_freedom(atoms, settings_of(ensemble="nve", velocities="zero")) == 21
    atoms.set_velocities(starting_velocities(atoms, settings_of(ensemble=before)))
    write(tmp_path / "final.extxyz", atoms)
    read_again = read_structure(tmp_path / "final.extxyz")
    assert degrees_of_freedom(read_again, settings) == freedom
    assert degrees_of_freedom(read_again, settings_of(ensemble="nvt", velocities="file")) == 24


def test_nose_hoover_heats_what_it_is_told_to():
    """Oscillators: kT/2 for each degree of freedom, and the fluctuations of the canonical ensemble."""
    random = np.random.default_rng(5)
    masses = np.array([1.0, 12.0, 16.0])[:, None]
    springs = np.array([20.0, 35.0, 50.0])[:, None]
    n, dt = len(masses), 0.05
    freedom = 3 * n
    chain = NoseHooverChain(freedom, 300.0, 3.0)
    q = 0.05 * random.standard_normal((n, 3))
    v = np.sqrt(chain.kT / masses) * random.standard_normal((n, 3))
    kinetic, energies = [], []

    def twice_kinetic() -> float:
        return float((masses * v**2).sum())

    for _ in range(12_000):
        v *= chain.propagate(0.5 * twice_kinetic(), 0.5 * dt)
        v += 0.5 * dt * -springs * q / masses
        q = q + dt * v
        v += 0.5 * dt * -springs * q / masses
        v *= chain.propagate(0.5 * twice_kinetic(), 0.5 * dt)
        kinetic.append(0.5 * twice_kinetic())
        energies.append(kinetic[-1] + 0.5 * (springs * q**2).sum() + chain.energy())
    assert np.mean(kinetic) == pytest.approx(0.5 * freedom * chain.kT, rel=0.04)
    assert np.std(kinetic) / np.mean(kinetic) == pytest.approx(np.sqrt(2 / freedom), rel=0.1)
    assert np.std(energies) < 0.01 * np.std(kinetic)
    half = len(energies) // 2
    assert abs(np.mean(energies[:half]) - np.mean(energies[half:])) < 0.01 * np.std(kinetic)


def sample_of(step: int, positions: np.ndarray, cell: np.ndarray | None = None) -> Sample:
    zeros = np.zeros_like(positions)
    return Sample(step, positions, zeros, zeros, 0.0, 0.0, None, cell)


@pytest.mark.parametrize("periodic", [True, False])
def test_dcd_is_what_others_read(periodic, tmp_path):
    mdtraj = pytest.importorskip("mdtraj")
    random = np.random.default_rng(0)
    atoms = prepare_structure(box_of_water(CELLS["not reduced"]), settings_of())
    atoms = atoms if periodic else prepare_structure(atoms, settings_of(isolated=True))
    bonds = find_bonds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    write_pdb(
        tmp_path / "topology.pdb", atoms, name_residues(atoms, molecules(atoms, bonds)), bonds.pairs
    )
    path = tmp_path / "t.dcd"
    frames = [atoms.positions + random.normal(size=(9, 3)) for _ in range(5)]
    cells = [atoms.cell.array * (1.0 + 0.01 * k) if periodic else None for k in range(5)]
    writer = DCDWriter(path, 9, periodic, settings_of(), append=False)
    for k in range(3):
        writer.write(sample_of(20 * k, frames[k], cells[k]))
    writer.sync()
    writer.close()
    writer = DCDWriter(path, 9, periodic, settings_of(), append=True)
    writer.write(sample_of(60, frames[3], cells[3]))
    size = writer.sync()
    writer.write(sample_of(80, frames[4], cells[4]))
    writer.close()  # As after a failure: the header counts what came since, too.
    assert path.stat().st_size > size
    assert struct.unpack_from("<i", path.read_bytes(), 8)[0] == 5

    positions, found = read_dcd(path)
    np.testing.assert_allclose(positions, frames, atol=1e-5)
    loaded = mdtraj.load(str(path), top=str(tmp_path / "topology.pdb"))
    np.testing.assert_allclose(10 * loaded.xyz, frames, atol=1e-4)
    assert loaded.topology.n_bonds == 6
    assert [str(a.name) for a in loaded.topology.atoms] == 3 * ["O", "H1", "H2"]
    if periodic:
        np.testing.assert_allclose(found, cells, atol=1e-6)
        np.testing.assert_allclose(10 * loaded.unitcell_vectors, cells, atol=1e-4)
    else:
        assert found is None
        assert loaded.unitcell_vectors is None
    with pytest.raises(InvalidStructureError, match="not a DCD file"):
        read_dcd(tmp_path / "topology.pdb")


def test_names_differ_within_a_residue_however_many_there_are():
    many = Atoms("C1200H30", positions=np.random.default_rng(0).uniform(0, 99, (1230, 3)))
    (residue,) = name_residues(many, [np.arange(1230)])
    assert len(set(residue.names)) == 1230
    assert all(len(name) <= 4 for name in residue.names)
    assert residue.names[:2] == ("C1", "C2")


def test_density_of_water():
    mass = molecule("H2O").get_masses().sum()
    assert density(64 * mass, 12.4447**3) == pytest.approx(0.9934, abs=2e-4)


def test_bins_reach_beyond_the_molecule():
    atoms = molecule("CH3CH2OH")
    edges = distance_edges(atoms)
    assert edges[-1] > 1.25 * atoms.get_all_distances().max()
    assert np.diff(edges) == pytest.approx(0.02)


def test_openmm_that_is_missing_or_too_old_is_named_with_the_other_engine(monkeypatch):
    openmm = pytest.importorskip("openmm")
    with monkeypatch.context() as patch:
        patch.delattr(openmm, "PythonForce")
        with pytest.raises(EngineError, match=r"is too old; pip install .* or choose --engine ase"):
            openmm_platform("auto")
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(EngineError, match=r"cannot be imported .* or choose --engine ase"):
        openmm_platform("auto")


def test_the_last_model_of_a_pdb_file(tmp_path):
    """OpenMM and the data bank write CRYST1 once, and END behind the last ENDMDL."""
    atom = "ATOM      1  O   HOH A   1    {:8.3f}   0.000   0.000  1.00  0.00           O"
    lines = ["CRYST1    9.000    9.500   10.000  90.00  90.00  90.00 P 1           1"]
    for model in (1, 2):
        lines += [f"MODEL     {model:4d}", atom.format(float(model)), "ENDMDL"]
    (tmp_path / "models.pdb").write_text("\n".join([*lines, "END", ""]))
    atoms = read_structure(tmp_path / "models.pdb")
    assert atoms.positions.tolist() == [[2.0, 0.0, 0.0]]
    assert atoms.pbc.all()
    np.testing.assert_allclose(atoms.cell.lengths(), [9.0, 9.5, 10.0])


def test_constraints_of_a_file_are_not_dropped_unnoticed():
    atoms = molecule("CH3CH2OH")
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigError, match="holds atoms \\(FixAtoms\\), and here all of them move"):
        prepare_structure(atoms, settings_of())
