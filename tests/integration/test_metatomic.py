"""The export to metatomic against the calculator of this package, through metatomic's own engines."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list
from typer.testing import CliRunner

from calculators import PotentialCalculator
from calculators.metatomic import export_metatomic, interaction_range
from forcefield import (
    build_graph,
    export_potential,
    load_exported,
    load_potential,
    save_potential,
)
from forcefield.errors import CheckpointError, EngineError
from forcefield.graph import edge_vectors
from forcefield.pretrained import BACKBONE
from forcefield.uncertainty import predict_uncertainty
from tests.conftest import ARCHITECTURES, make_potential
from training.export_cli import app as export_app

mta = pytest.importorskip("metatomic.torch")
from metatensor.torch import Labels, TensorBlock  # noqa: E402
from metatomic_ase import MetatomicCalculator  # noqa: E402
from vesin.metatomic import NeighborList  # noqa: E402


def calculator(path, **options) -> MetatomicCalculator:
    return MetatomicCalculator(path, device="cpu", **options)


@pytest.fixture(scope="module")
def exported(float32_potential, float64_potential, tmp_path_factory):
    """The metatomic file of each precision."""
    folder = tmp_path_factory.mktemp("metatomic")
    for name, potential in (("float32", float32_potential), ("float64", float64_potential)):
        export_metatomic(potential.path, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in ("float32", "float64")}


@pytest.fixture
def crystal(water_box) -> Atoms:
    """Two water molecules in a sheared cell that is smaller than the cutoff."""
    atoms = water_box[:6]
    atoms.set_cell([[3.5, 0.0, 0.0], [0.4, 3.8, 0.0], [-0.5, 0.9, 6.5]])
    return atoms


def as_system(atoms: Atoms, model, length: float = units.Angstrom) -> "mta.System":
    """A metatomic system with its neighbour lists, positions ready to be differentiated."""
    pbc = torch.as_tensor(atoms.pbc)
    cell = torch.as_tensor(atoms.cell.array / length) * pbc[:, None]
    positions = torch.tensor(atoms.positions / length, requires_grad=True)
    types = torch.as_tensor(atoms.numbers, dtype=torch.int32)
    system = mta.System(types, positions, cell, pbc)
    name = {units.Angstrom: "angstrom", units.nm: "nm"}[length]
    for options in model.requested_neighbor_lists():
        NeighborList(options, name).add_neighbor_list(system)
    return system


def energy_output(kind: str = "system", unit: str = "eV") -> "dict[str, mta.ModelOutput]":
    return {"energy": mta.ModelOutput(unit=unit, sample_kind=kind)}


def evaluate(model, systems, outputs, selected=None, length_unit="angstrom"):
    options = mta.ModelEvaluationOptions(length_unit, outputs, selected_atoms=selected)
    return model(systems, options, check_consistency=True)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("float64", 1e-9)])
def test_energies_forces_and_stress_are_those_of_the_calculator(
    precision, tolerance, exported, ethanol, water_box, crystal, request
):
    reference = PotentialCalculator(request.getfixturevalue(f"{precision}_potential").path)
    slab = water_box.copy()
    slab.pbc = [True, False, True]
    for atoms in (ethanol, crystal, water_box, slab, molecule("O")):
        other = atoms.copy()
        atoms.calc = reference
        other.calc = calculator(exported[precision], check_consistency=True)
        for energies in (Atoms.get_potential_energies, Atoms.get_forces):
            np.testing.assert_allclose(energies(other), energies(atoms), rtol=0, atol=tolerance)
        total = atoms.get_potential_energy()
        assert other.get_potential_energy() == pytest.approx(total, abs=len(atoms) * tolerance)
        if atoms.pbc.all():
            np.testing.assert_allclose(
                other.get_stress(), atoms.get_stress(), rtol=0, atol=0.1 * tolerance
            )
    assert np.abs(crystal.get_stress()).max() > 1e-3
    assert np.abs(crystal.get_forces()).max() > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_model_can_be_exported_loaded_or_from_weights(name, ethanol, tmp_path):
    potential = make_potential(name)
    save_potential(potential, tmp_path / "weights.safetensors")
    export_metatomic(potential, tmp_path / "loaded.pt")
    export_metatomic(tmp_path / "weights.safetensors", tmp_path / "weights.pt")
    graph = build_graph(ethanol.positions, ethanol.numbers, potential.cutoff)
    expected = potential(*graph.tensors())["energy"].item()
    for file in ("loaded.pt", "weights.pt"):
        ethanol.calc = calculator(tmp_path / file)
        assert ethanol.get_potential_energy() == pytest.approx(expected, abs=1e-9)


def test_a_float32_potential_can_run_in_float64(float32_potential, ethanol, tmp_path):
    export_metatomic(float32_potential.path, tmp_path / "double.pt", dtype=torch.float64)
    ethanol.calc = PotentialCalculator(float32_potential.path, dtype=torch.float64)
    expected = ethanol.get_forces()
    ethanol.calc = calculator(tmp_path / "double.pt")
    np.testing.assert_allclose(ethanol.get_forces(), expected, rtol=0, atol=1e-12)


def test_the_file_says_what_it_is(exported, float32_potential):
    model = mta.load_atomistic_model(exported["float32"])
    capabilities = model.capabilities()
    assert capabilities.atomic_types == [1, 6, 8]
    assert capabilities.length_unit == "angstrom"
    assert capabilities.dtype == "float64"
    assert set(capabilities.supported_devices) == {"cpu", "cuda"}
    assert capabilities.outputs["energy"].unit == "eV"
    assert not any(name.startswith("non_conservative") for name in capabilities.outputs)
    assert "energy_uncertainty" not in capabilities.outputs
    (neighbors,) = model.requested_neighbor_lists()
    assert (neighbors.cutoff, neighbors.full_list, neighbors.strict) == (4.0, False, True)
    metadata = model.metadata()
    assert "H C O" in metadata.description
    assert "2410.11443" in metadata.references["architecture"][0]
    header = json.loads(metadata.extra["hegnn-forcefield"])
    assert header["note"] == "random weights"
    assert header["architecture"] == load_exported(float32_potential.path).metadata["architecture"]


def test_the_command_takes_weights_runs_and_exported_files(float64_potential, ethanol, tmp_path):
    weights = tmp_path / "run/potential.safetensors"
    save_potential(float64_potential.eager, weights)
    ethanol.calc = PotentialCalculator(float64_potential.path)
    expected = ethanol.get_potential_energy()
    sources = {
        str(weights): weights.with_name("potential-metatomic.pt"),
        str(weights.parent): tmp_path / "named.pt",
        str(float64_potential.path): tmp_path / "again.pt",
    }
    for source, target in sources.items():
        output = [] if source == str(weights) else [str(target)]
        done = CliRunner().invoke(export_app, [source, *output, "--format", "metatomic"])
        assert done.exit_code == 0, done.output
        assert str(target) in done.output.replace("\n", "")
        ethanol.calc = calculator(target)
        # A model made from its weights has constants in float64 that the fixture took over from float32.
        assert ethanol.get_potential_energy() == pytest.approx(expected, abs=1e-6)


def test_without_metatomic_the_error_says_what_to_install(float32_potential, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "metatomic.torch", None)
    with pytest.raises(EngineError, match=r'pip install "hegnn-forcefield\[metatomic\]"'):
        export_metatomic(float32_potential.path, tmp_path / "model.pt")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="no exported potential"):
        export_metatomic(tmp_path / "missing.pt", tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_the_file_runs_without_this_package(exported, float64_potential, water_box, tmp_path):
    water_box.write(tmp_path / "water.traj")
    program = (
        "import sys, ase.io\n"
        "from metatomic_ase import MetatomicCalculator\n"
        "atoms = ase.io.read('water.traj')\n"
        "atoms.calc = MetatomicCalculator(sys.argv[1], device='cpu')\n"
        "print(repr(float(atoms.get_potential_energy())), repr(float(abs(atoms.get_forces()).max())))\n"
        "assert not {'forcefield', 'calculators'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported["float64"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    water_box.calc = PotentialCalculator(float64_potential.path)
    energy, force = map(float, done.stdout.split())
    assert energy == pytest.approx(water_box.get_potential_energy(), abs=1e-8)
    assert force == pytest.approx(np.abs(water_box.get_forces()).max(), abs=1e-9)


def test_unknown_element_is_refused(exported):
    atoms = molecule("CH3Cl")
    atoms.calc = calculator(exported["float32"])
    with pytest.raises((ValueError, RuntimeError), match="atomic type '17'"):
        atoms.get_potential_energy()


def test_engines_get_their_own_units(exported, float64_potential, crystal):
    model = mta.load_atomistic_model(exported["float64"])
    crystal.calc = PotentialCalculator(float64_potential.path)
    system = as_system(crystal, model, units.nm)
    energy = evaluate(model, [system], energy_output(unit="kJ/mol"), length_unit="nm")["energy"]
    value = energy.block().values
    value.backward()
    in_kj = units.kJ / units.mol
    # The two packages take the constants of different years: they agree to eight digits.
    assert value.item() * in_kj == pytest.approx(crystal.get_potential_energy(), rel=1e-7)
    forces = -system.positions.grad.numpy() * in_kj / units.nm
    np.testing.assert_allclose(forces, crystal.get_forces(), rtol=1e-7, atol=1e-9)


def test_several_systems_in_one_call(exported, ethanol, crystal):
    model = mta.load_atomistic_model(exported["float64"])
    structures = [ethanol, crystal, molecule("H2O"), molecule("O")]
    systems = [as_system(atoms, model) for atoms in structures]
    together = evaluate(model, systems, energy_output())["energy"].block().values
    together.sum().backward()
    assert together.shape == (4, 1)
    for atoms, system, energy in zip(structures, systems, together, strict=True):
        atoms.calc = calculator(exported["float64"])
        assert energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        forces = -system.positions.grad.numpy()
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-9)


def test_only_the_selected_atoms_count(exported, ethanol, crystal):
    model = mta.load_atomistic_model(exported["float64"])
    systems = [as_system(atoms, model) for atoms in (ethanol, crystal)]
    everyone = evaluate(model, systems, energy_output("atom"))["energy"].block()
    selected = Labels(["system", "atom"], torch.tensor([[1, 4], [0, 2], [1, 0]], dtype=torch.int32))
    chosen = evaluate(model, systems, energy_output("atom"), selected)["energy"].block()
    assert chosen.samples == selected
    per_atom = {tuple(row): value for row, value in zip(*_rows(everyone), strict=True)}
    for row, value in zip(*_rows(chosen), strict=True):
        assert value == per_atom[tuple(row)]
    _, sums = _rows(evaluate(model, systems, energy_output(), selected)["energy"].block())
    assert sums[0] == per_atom[0, 2]
    assert sums[1] == pytest.approx(per_atom[1, 4] + per_atom[1, 0], abs=1e-9)


def _rows(block: "TensorBlock") -> tuple[list, list]:
    return block.samples.values.tolist(), block.values[:, 0].detach().tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_interaction_range_is_where_the_influence_of_atoms_ends(name):
    potential = make_potential(name)
    reach = interaction_range(potential.architecture)
    assert reach % potential.cutoff == 0.0
    spacing = 0.8 * potential.cutoff  # nearest neighbours see each other, no others do
    count = 8
    random = np.random.default_rng(0).normal(scale=0.2, size=(count, 2))
    chain = np.column_stack([spacing * np.arange(count), random])
    graph = build_graph(chain, np.tile([1, 6, 8], 3)[:count], potential.cutoff)
    positions = graph.positions.requires_grad_(True)
    vectors = edge_vectors(positions, graph.edge_index, graph.cell_shifts, graph.cell, graph.batch)
    species = potential.species_index[graph.atomic_numbers]
    energies = potential.atomic_energies(species, graph.edge_index, vectors)
    influence = torch.autograd.grad(energies[0], positions)[0].norm(dim=1)
    steps = round(reach / potential.cutoff)
    assert (influence[: steps + 1] > 0.0).all()
    assert (influence[steps + 1 :] == 0.0).all()


def decomposed(atoms: Atoms, model, reach: float) -> tuple[float, np.ndarray]:
    """Energy and forces as a domain decomposition sums them up: two halves of the cell, each with
    copies of the atoms within reach as ghosts, without periodicity.
    """
    total, forces = 0.0, np.zeros((len(atoms), 3))
    left = atoms.get_scaled_positions()[:, 0] < 0.5
    assert 0 < left.sum() < len(atoms)
    i, j, shifts = neighbor_list("ijS", atoms, reach)
    for local in (np.flatnonzero(left), np.flatnonzero(~left)):
        inside = np.isin(i, local)
        images = np.unique(np.column_stack([j, shifts])[inside], axis=0)
        ghosts = images[~((images[:, 1:] == 0).all(axis=1) & np.isin(images[:, 0], local))]
        owner = np.concatenate([local, ghosts[:, 0]])
        positions = atoms.positions[owner]
        positions[len(local) :] += ghosts[:, 1:] @ atoms.cell.array
        system = as_system(Atoms(atoms.numbers[owner], positions), model)
        rows = np.column_stack([np.zeros(len(local)), np.arange(len(local))])
        selected = Labels(["system", "atom"], torch.as_tensor(rows, dtype=torch.int32))
        energy = evaluate(model, [system], energy_output(), selected)["energy"].block().values
        energy.backward()
        total += energy.item()
        np.add.at(forces, owner, -system.positions.grad.numpy())
    return total, forces


def test_domains_with_ghost_atoms_give_the_whole(exported, float64_potential, crystal):
    model = mta.load_atomistic_model(exported["float64"])
    crystal.calc = PotentialCalculator(float64_potential.path)
    reach = model.capabilities().interaction_range
    energy, forces = decomposed(crystal, model, reach)
    assert energy == pytest.approx(crystal.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(forces, crystal.get_forces(), rtol=0, atol=1e-10)
    _, forces = decomposed(crystal, model, reach - 4.0)
    assert np.abs(forces - crystal.get_forces()).max() > 1e-8


def test_features_are_the_scalars_before_the_readout(exported, float64_potential, ethanol):
    potential = float64_potential.eager
    graph = build_graph(ethanol.positions, ethanol.numbers, potential.cutoff)
    vectors = edge_vectors(*graph.tensors()[:1], *graph.tensors()[2:])
    species = potential.species_index[graph.atomic_numbers]
    expected, _ = potential.representation(species, graph.edge_index, vectors)
    runner = calculator(exported["float64"], check_consistency=True)
    for kind, values in (("atom", expected), ("system", expected.sum(0, keepdim=True))):
        outputs = {"feature": mta.ModelOutput(sample_kind=kind)}
        found = runner.run_model(ethanol, outputs)["feature"].block().values
        torch.testing.assert_close(found, values, rtol=0, atol=1e-9)


def test_a_system_without_atoms_has_features_of_the_right_width(exported):
    """PLUMED asks one how many collective variables there will be."""
    model = mta.load_atomistic_model(exported["float32"])
    nowhere = torch.zeros(0, 3, dtype=torch.float64)
    types, pbc = torch.zeros(0, dtype=torch.int32), torch.zeros(3, dtype=torch.bool)
    system = mta.System(types, nowhere, torch.zeros(3, 3, dtype=torch.float64), pbc)
    names = ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"]
    pairs = TensorBlock(
        nowhere.reshape(0, 3, 1),
        Labels(names, torch.zeros(0, 5, dtype=torch.int32)),
        [Labels(["xyz"], torch.arange(3).reshape(3, 1))],
        Labels(["distance"], torch.zeros(1, 1, dtype=torch.int32)),
    )
    (options,) = model.requested_neighbor_lists()
    system.add_neighbor_list(options, pairs)
    for kind, shape in (("atom", (0, 16)), ("system", (1, 16))):
        outputs = {"feature": mta.ModelOutput(sample_kind=kind)}
        assert evaluate(model, [system], outputs)["feature"].block().values.shape == shape


def test_estimated_errors_come_with_the_energy(ethanol, tmp_path):
    potential = make_potential("hegnn", torch.float32)
    factor = torch.diag(torch.linspace(0.5, 2.0, 16, dtype=torch.float64))
    potential.posterior.set(factor, torch.tensor([0.7, 0.9], dtype=torch.float64))
    export_metatomic(potential, tmp_path / "uncertain.pt")
    ethanol.calc = calculator(
        tmp_path / "uncertain.pt", uncertainty_threshold=1e-6, check_consistency=True
    )
    graph = build_graph(ethanol.positions, ethanol.numbers, potential.cutoff)
    expected, _ = predict_uncertainty(potential.requires_grad_(False), *graph.tensors())
    output = {"energy_uncertainty": mta.ModelOutput(unit="meV", sample_kind="system")}
    found = ethanol.calc.run_model(ethanol, output)["energy_uncertainty"].block().values
    assert found.item() == pytest.approx(1000.0 * expected.item(), rel=1e-5)
    with pytest.warns(UserWarning, match="uncertainties are larger than the threshold"):
        assert np.isfinite(ethanol.get_forces()).all()


def test_energy_is_conserved_along_the_same_trajectory(tmp_path):
    """With weights of real molecules: 50 fs of ethanol at 300 K."""
    weights, _ = load_potential(BACKBONE)
    export_potential(weights, tmp_path / "potential.pt")
    export_metatomic(BACKBONE, tmp_path / "metatomic.pt")
    start = molecule("CH3CH2OH")
    thermalize_momenta(start, temperature_K=300, rng=np.random.default_rng(3))
    ends = []
    for engine in (
        PotentialCalculator(tmp_path / "potential.pt"),
        calculator(tmp_path / "metatomic.pt"),
    ):
        atoms = start.copy()
        atoms.calc = engine
        potential, total = atoms.get_potential_energy(), atoms.get_total_energy()
        VelocityVerlet(atoms, 0.5 * units.fs).run(100)
        assert abs(atoms.get_potential_energy() - potential) > 0.05
        assert atoms.get_total_energy() == pytest.approx(total, abs=0.005)
        ends.append(atoms.positions)
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-4)


def test_exporting_leaves_the_potential_as_it_was(float32_potential, ethanol, tmp_path):
    loaded = load_exported(float32_potential.path)
    export_metatomic(loaded, tmp_path / "model.pt", dtype=torch.float64)
    assert loaded.dtype == torch.float32
    ethanol.calc = PotentialCalculator(float32_potential.path)
    expected = ethanol.get_forces()
    ethanol.calc = PotentialCalculator(loaded)
    np.testing.assert_array_equal(ethanol.get_forces(), expected)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
