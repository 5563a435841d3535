"""i-PI drives path integrals with this package's calculator and with its metatomic export."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.calculators.socketio import actualunixsocketname
from ase.io import read

from calculators import PotentialCalculator
from calculators.metatomic import export_metatomic
from forcefield import export_potential, load_potential
from forcefield.pretrained import BACKBONE

pytest.importorskip("ipi")

EXAMPLE = Path(__file__).parents[2] / "examples/ipi"
PROGRAMS = Path(sys.executable).parent
STEPS, BEADS = 12, 4
LIMIT = 120.0
"""Seconds after which any of the processes is taken to hang."""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(EXAMPLE.parents[1]), "OMP_NUM_THREADS": "1"}


def run_ipi(folder: Path, client: list[str], **changes: str) -> dict[str, np.ndarray]:
    """Run the example's input for a few steps with a client; what i-PI wrote about each step.

    Args:
        folder: Where to run.
        client: Command of the client; {address} is filled in.
        changes: Texts of the input and what to put in their place.
    """
    address = f"hegnn-{os.getpid()}-{folder.name}"
    socket = Path(actualunixsocketname(address))
    text = (EXAMPLE / "input.xml").read_text(encoding="utf-8")
    for old, new in {
        "<address> hegnn </address>": f"<address> {address} </address>",
        "<total_steps> 1000 </total_steps>": f"<total_steps> {STEPS} </total_steps>",
        **changes,
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "input.xml").write_text(text, encoding="utf-8")
    options = {"cwd": folder, "env": environment(), "text": True, "stderr": subprocess.STDOUT}
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, str(PROGRAMS / "i-pi"), "input.xml"]
        server = subprocess.Popen(command, stdout=log, **options)
        try:
            limit = time.monotonic() + LIMIT
            while not socket.exists() and server.poll() is None and time.monotonic() < limit:
                time.sleep(0.05)
            assert socket.exists(), (folder / "server.log").read_text()
            done = subprocess.run(
                [part.format(address=address) for part in client],
                stdout=subprocess.PIPE,
                timeout=LIMIT,
                check=False,
                **options,
            )
            assert server.wait(LIMIT) == 0, (folder / "server.log").read_text() + done.stdout
            assert done.returncode == 0, done.stdout
        finally:
            server.kill()
            socket.unlink(missing_ok=True)
    columns = np.loadtxt(folder / "ethanol.out").T
    names = ("step", "time", "conserved", "kelvin", "kinetic", "potential")
    return dict(zip(names, columns, strict=True))


@pytest.fixture(scope="module")
def potential(tmp_path_factory) -> Path:
    """The weights that ship with the package, exported."""
    path = tmp_path_factory.mktemp("general") / "potential.pt"
    export_potential(*load_potential(BACKBONE)[:1], path)
    return path


@pytest.fixture(scope="module")
def with_calculator(potential, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """The example, as it stands."""
    folder = tmp_path_factory.mktemp("calculator")
    shutil.copy(EXAMPLE / "ethanol.xyz", folder)
    client = [sys.executable, str(EXAMPLE / "client.py"), str(potential), "--address", "{address}"]
    return folder, run_ipi(folder, client)


def test_path_integrals_with_the_calculator(with_calculator):
    folder, steps = with_calculator
    assert steps["step"].tolist() == list(range(STEPS + 1))
    assert steps["time"][-1] == pytest.approx(0.5 * STEPS)
    assert np.ptp(steps["potential"]) > 0.3
    assert np.abs(steps["conserved"] - steps["conserved"][0]).max() < 0.02
    beads = sorted(folder.glob("ethanol.pos_*.extxyz"))
    assert len(beads) == BEADS
    assert read(beads[-1], index=0).get_chemical_formula() == "C2H6O"


def test_metatomic_driver_gives_what_the_calculator_gives(potential, tmp_path):
    """The driver of i-PI in this process: two beads in one call, in atomic units."""
    pytest.importorskip("metatomic.torch")
    from ipi.pes.metatomic import MetatomicDriver

    export_metatomic(potential, tmp_path / "metatomic.pt")
    template = EXAMPLE / "ethanol.xyz"
    driver = MetatomicDriver(template=str(template), model=str(tmp_path / "metatomic.pt"))
    atoms = read(template)
    atoms.set_cell(12.0 * np.eye(3))
    atoms.pbc = True
    atoms.calc = PotentialCalculator(potential)
    beads = []
    for seed in range(2):
        atoms.rattle(0.03, seed=seed)
        beads.append(atoms.copy())
    cell = atoms.cell.array.T / units.Bohr
    results = driver([cell, cell], [bead.positions / units.Bohr for bead in beads])
    for bead, (energy, forces, virial, _) in zip(beads, results, strict=True):
        bead.calc = atoms.calc
        assert energy * units.Hartree == pytest.approx(bead.get_potential_energy(), rel=2e-7)
        in_ev = forces.reshape(-1, 3) * units.Hartree / units.Bohr
        np.testing.assert_allclose(in_ev, bead.get_forces(), rtol=0, atol=2e-4)
        expected = -bead.get_volume() * bead.get_stress(voigt=False)
        np.testing.assert_allclose(virial * units.Hartree, expected, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_metatomic_export_takes_all_beads_in_one_call(with_calculator, potential, tmp_path):
    pytest.importorskip("metatomic.torch")
    export_metatomic(potential, tmp_path / "metatomic.pt")
    shutil.copy(EXAMPLE / "ethanol.xyz", tmp_path)
    client = [sys.executable, str(PROGRAMS / "i-pi-py_driver"), "-u", "-a", "{address}"]
    client += ["-m", "metatomic", "-o", "template=ethanol.xyz,model=metatomic.pt"]
    latency = "<latency> 1e-4 </latency>"
    batched = {latency: f"{latency} <batch_size> {BEADS} </batch_size>"}
    steps = run_ipi(tmp_path, client, **batched)
    _, expected = with_calculator
    # ASE's client and i-PI's driver take the constants of different years: 1e-7 of the total.
    np.testing.assert_allclose(steps["potential"], expected["potential"], rtol=2e-7)
    for name in ("potential", "kinetic", "conserved"):
        changes, wanted = steps[name] - steps[name][0], expected[name] - expected[name][0]
        np.testing.assert_allclose(changes, wanted, rtol=0, atol=1e-4)
