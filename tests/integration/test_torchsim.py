"""The TorchSim model against the calculator of this package; without TorchSim, its error."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet

from calculators import PotentialCalculator
from forcefield import build_potential, export_potential
from forcefield.errors import (
    ConfigError,
    EngineError,
    InvalidStructureError,
    NonFiniteForceError,
    UnknownElementError,
)

HAS_TORCHSIM = importlib.util.find_spec("torch_sim") is not None


def test_without_torchsim_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    monkeypatch.delitem(sys.modules, "calculators.torchsim", raising=False)
    with pytest.raises(EngineError, match=r"pip install torch-sim-atomistic"):
        importlib.import_module("calculators.torchsim")


@pytest.mark.skipif(not HAS_TORCHSIM, reason="torch-sim-atomistic is not installed")
class TestModel:
    @pytest.fixture
    def make(self):
        from calculators.torchsim import TorchSimModel

        return TorchSimModel

    @staticmethod
    def state(structures: list[Atoms], dtype: torch.dtype = torch.float64):
        import torch_sim as ts

        return ts.io.atoms_to_state(structures, torch.device("cpu"), dtype)

    @staticmethod
    def check(output: dict, structures: list[Atoms], path, tolerance: float = 1e-9) -> None:
        start = 0
        for index, structure in enumerate(structures):
            atoms = structure.copy()
            atoms.calc = PotentialCalculator(path)
            end = start + len(atoms)
            energy = output["energy"][index].item()
            assert energy == pytest.approx(atoms.get_potential_energy(), abs=len(atoms) * tolerance)
            forces = output["forces"][start:end].numpy()
            np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=tolerance)
            if atoms.pbc.all():
                stress = output["stress"][index].numpy()
                expected = atoms.get_stress(voigt=False)
                np.testing.assert_allclose(stress, expected, rtol=0, atol=tolerance)
            start = end
        assert len(output["forces"]) == start

    @pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("float64", 1e-9)])
    def test_molecules_of_different_sizes(self, make, precision, tolerance, ethanol, request):
        path = request.getfixturevalue(f"{precision}_potential").path
        structures = [ethanol, molecule("H2O"), molecule("O"), molecule("C6H6")]
        output = make(path)(self.state(structures))
        self.check(output, structures, path, tolerance)
        assert output["energy"].dtype == output["forces"].dtype == torch.float64
        assert bool(torch.isnan(output["stress"]).all())
        assert "stress" not in make(path, compute_stress=False)(self.state(structures))

    def test_crystals_and_moving_atoms(self, make, float64_potential, water_box):
        path = float64_potential.path
        small = water_box[:6]
        small.set_cell([[3.5, 0.0, 0.0], [0.4, 3.8, 0.0], [-0.5, 0.9, 6.5]])
        structures = [small, water_box]
        model = make(path)
        generator = np.random.default_rng(2)
        for step in range(4):
            self.check(model(self.state(structures)), structures, path)
            for atoms in structures:
                atoms.positions += 0.02 * generator.normal(size=atoms.positions.shape)
            if step == 2:
                water_box.set_cell(0.98 * water_box.cell.array, scale_atoms=True)
        assert [found.builds for found in model._lists] < [4, 4]
        # Other structures in the same places: their lists must not be mistaken for the old ones.
        structures = [*structures[::-1], small]
        self.check(model(self.state(structures)), structures, path)

    def test_a_large_molecule_outside_a_cell(self, make, float64_potential, water_box, ethanol):
        water_box.pbc = False
        structures = [ethanol, water_box]
        output = make(float64_potential.path)(self.state(structures))
        self.check(output, structures, float64_potential.path)

    def test_single_precision_states(self, make, float32_potential, water_box):
        model = make(float32_potential.path, dtype=torch.float32)
        output = model(self.state([water_box], torch.float32))
        assert {value.dtype for value in output.values()} == {torch.float32}
        water_box.calc = PotentialCalculator(float32_potential.path)
        np.testing.assert_allclose(output["forces"], water_box.get_forces(), rtol=0, atol=1e-4)

    def test_mistakes_name_structure_and_atom(
        self, make, float32_potential, broken_potential, ethanol, water_box
    ):
        model = make(float32_potential.path)
        with pytest.raises(UnknownElementError, match="Cl"):
            model(self.state([ethanol, molecule("CH3Cl")]))
        with pytest.raises(NonFiniteForceError, match=r"atom 0 \(C\) of structure 0"):
            make(broken_potential)(self.state([ethanol]))
        for atoms in (ethanol, water_box):
            broken = atoms.copy()
            broken.positions[3, 1] = np.nan
            symbol = atoms.get_chemical_symbols()[3]
            with pytest.raises(InvalidStructureError, match=rf"atom 3 \({symbol}\) of structure 1"):
                model(self.state([atoms, broken]))

    def test_a_skin_below_zero_is_refused(self, make, float64_potential):
        with pytest.raises(ConfigError, match="skin is a length in Å"):
            make(float64_potential.path, skin=-0.5)

    def test_replicas_move_as_in_ase(self, make, float64_potential):
        import torch_sim as ts

        starts = [molecule("CH3CH2OH"), molecule("H2O"), molecule("CH3CH2OH")]
        for seed, atoms in enumerate(starts):
            atoms.rattle(0.03, seed=seed)
        nve = ts.Integrator.nve if hasattr(ts, "Integrator") else ts.nve
        model = make(float64_potential.path)
        steps, picoseconds = 30, 0.0005
        end = ts.integrate(
            starts, model, integrator=nve, n_steps=steps, temperature=0.0, timestep=picoseconds
        )
        expected = []
        for atoms in starts:
            moving = atoms.copy()
            moving.calc = PotentialCalculator(float64_potential.path)
            VelocityVerlet(moving, 1000.0 * picoseconds * units.fs).run(steps)
            expected.append(moving.positions)
            assert np.abs(moving.positions - atoms.positions).max() > 0.05
        np.testing.assert_allclose(end.positions, np.concatenate(expected), rtol=0, atol=1e-6)

    def test_torchsim_finds_its_interface_kept(self, make, tmp_path):
        from torch_sim.models.interface import validate_model_outputs

        potential = build_potential(
            {"name": "egnn", "cutoff": 4.0, "layers": 1, "features": 8}, [1, 6, 12, 14, 26]
        )
        export_potential(potential, tmp_path / "metals.pt")
        model = make(tmp_path / "metals.pt")
        validate_model_outputs(model, torch.device("cpu"), torch.float64)
