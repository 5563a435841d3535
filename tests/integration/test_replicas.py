"""Copies of a molecule that are evaluated and moved together."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.data import atomic_masses

from calculators import LangevinReplicas, PotentialCalculator, Replicas
from calculators.replica_pairs import PairList
from forcefield.errors import AbsurdForceError, ConfigError, NonFiniteForceError
from tests.integration.general_potential import general_file
from tests.no_waiting import NoWaiting


def replicas_of(potential, atoms, number, **options):
    return Replicas(potential.path, atoms.numbers, number, **options)


def rattled(atoms, number, size=0.05):
    noise = np.random.default_rng(4).normal(size=(number, len(atoms), 3))
    return atoms.positions + size * noise


def long_chain():
    """13 atoms, half of whose 78 pairs lie beyond the cutoff."""
    chain = molecule("C3H9C")
    chain.positions *= 1.5
    return chain


def contract(dynamics):
    """Let every copy fall in on itself: within 15 steps a quarter more pairs come close."""
    dynamics.velocities.sub_(0.2 * dynamics.positions)


class ListedReplicas(LangevinReplicas):
    """Takes its pairs from a list of fixed length, as on a GPU."""

    room = 0
    recordings = 0

    def _choose_pairs(self):
        pairs = PairList(self.replicas.pairs, self.positions)
        pairs.length = max(pairs.length, self.room)
        return pairs

    def _record(self):
        super()._record()
        self.recordings += 1


def total_energies(dynamics):
    masses = torch.tensor(atomic_masses[dynamics.replicas.numbers]).view(1, -1, 1)
    kinetic = 0.5 * (masses * dynamics.velocities.cpu().square()).sum((1, 2))
    return dynamics.energies.cpu() + kinetic


def test_copies_have_the_energies_and_forces_of_the_molecule(float64_potential, ethanol):
    positions = rattled(ethanol, 5)
    energies, forces = replicas_of(float64_potential, ethanol, 5)(torch.tensor(positions))
    ethanol.calc = PotentialCalculator(float64_potential.path)
    for k in range(5):
        ethanol.positions = positions[k]
        assert float(energies[k]) == pytest.approx(ethanol.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(forces[k].numpy(), ethanol.get_forces(), atol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 0.8, 1.0, 100.0])
def test_pairs_beyond_the_cutoff_change_nothing(scale, float64_potential):
    chain = long_chain()
    replicas = replicas_of(float64_potential, chain, 30)
    positions = scale * rattled(chain, 30)
    found = replicas(torch.tensor(positions))
    every = replicas.pairs.every
    pairs = replicas.pairs.edges(torch.tensor(positions)).shape[1]
    assert (pairs == every.shape[1], pairs == 0) == (scale == 0.3, scale == 100.0)
    listed = PairList(replicas.pairs, torch.tensor(positions)).edges(torch.tensor(positions))
    chain.calc = PotentialCalculator(float64_potential.path, max_force=np.inf)
    for edges in (every, listed):
        for one, other in zip(found, replicas(torch.tensor(positions), edges), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for k in (0, 29):
        chain.positions = positions[k]
        assert float(found[0][k]) == pytest.approx(chain.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(found[1][k].numpy(), chain.get_forces(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("device", "compile"),
    [
        ("cpu", False),
        pytest.param("cuda", False, marks=pytest.mark.gpu),
        pytest.param("cuda", True, marks=pytest.mark.gpu),
    ],
)
def test_a_list_that_overflows_grows_and_its_steps_are_taken_again(
    device, compile, float32_potential, monkeypatch
):
    """The trajectory, noise included, is that of a list that was long enough from the start."""
    monkeypatch.setattr("calculators.replicas.STEPS_BETWEEN_CHECKS", 10)
    chain = long_chain()
    replicas = replicas_of(float32_potential, chain, 50, device=device, compile=compile)
    total = replicas.pairs.every.shape[1]

    def run(room):
        monkeypatch.setattr(ListedReplicas, "room", room)
        dynamics = ListedReplicas(replicas, rattled(chain, 50), friction=20.0, max_force=np.inf)
        before = dynamics._pairs.length
        dynamics.run(5)
        contract(dynamics)
        dynamics.run(15)
        assert dynamics.steps == 20
        return dynamics, before, dynamics._pairs.length

    growing, before, after = run(0)
    assert before < after < total
    assert growing.recordings > 1
    for room in (after, total):
        roomy, *lengths = run(room)
        assert lengths == [room, room]
        assert roomy.recordings == 1
        for name in ("positions", "velocities", "energies", "forces"):
            one, other = getattr(growing, name), getattr(roomy, name)
            if device == "cpu" and room == after:
                assert torch.equal(one, other), name
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_steps_that_are_interrupted_do_not_count(float64_potential, monkeypatch):
    chain = long_chain()
    dynamics = ListedReplicas(replicas_of(float64_potential, chain, 50), chain.positions)
    dynamics.run(2)
    before = dynamics.positions.clone()
    steps = iter(range(3))
    take = dynamics._step

    def interrupted():
        take()
        if next(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(dynamics, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dynamics.run(10)
    assert dynamics.steps == 2
    assert torch.equal(dynamics.positions, before)


def test_a_step_with_a_list_does_not_wait_for_the_device(float32_potential):
    chain = long_chain()
    dynamics = ListedReplicas(replicas_of(float32_potential, chain, 50), rattled(chain, 50))
    assert dynamics._pairs.length < dynamics.replicas.pairs.every.shape[1]
    with NoWaiting():
        dynamics._take_step()
    with pytest.raises(AssertionError, match="nonzero"), NoWaiting():
        dynamics.replicas(dynamics.positions)


@pytest.mark.parametrize(
    ("kind", "device", "compile"),
    [
        (LangevinReplicas, "cpu", False),
        (ListedReplicas, "cpu", False),
        pytest.param(LangevinReplicas, "cuda", False, marks=pytest.mark.gpu),
        pytest.param(LangevinReplicas, "cuda", True, marks=pytest.mark.gpu),
    ],
)
def test_changed_positions_are_a_start_like_any_other(kind, device, compile, float64_potential):
    """As of dynamics that begin there, also where the list of pairs is too short at first."""
    chain = long_chain()
    replicas = replicas_of(float64_potential, chain, 50, device=device, compile=compile)
    start, other = rattled(chain, 50), 0.7 * rattled(chain, 50, 0.1)
    options = {"temperature": 100.0, "friction": 0.01, "seed": 3, "max_force": np.inf}
    names = ("positions", "velocities", "energies", "forces")

    dynamics, fresh = kind(replicas, start, **options), kind(replicas, other, **options)
    tensors = [getattr(dynamics, name) for name in names]
    length = getattr(dynamics._pairs, "length", 0)
    dynamics.positions.copy_(torch.tensor(other))
    dynamics.run(2)
    fresh.run(2)
    assert kind is not ListedReplicas or dynamics._pairs.length > length
    for name in names:
        one, two = getattr(dynamics, name), getattr(fresh, name)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)

    # Between runs, a few of them only, through an array that shares the memory where there is one
    places = dynamics.positions.numpy() if device == "cpu" else dynamics.positions
    places[3] = places[4]
    dynamics.velocities[3].zero_()
    energies = dynamics.energies.clone()
    dynamics.run(0)
    assert dynamics.steps == 2
    torch.testing.assert_close(dynamics.energies[3], energies[4])
    torch.testing.assert_close(dynamics.forces[3], dynamics.forces[4])
    keep = [k for k in range(50) if k != 3]
    torch.testing.assert_close(dynamics.energies[keep], energies[keep])
    options["friction"] = 0.0
    third = kind(replicas, dynamics.positions.cpu().numpy(), **options)
    third.velocities.copy_(dynamics.velocities)
    dynamics._memory = 1.0
    dynamics._record()
    dynamics.run(1)
    third.run(1)
    for name in names:
        one, two = getattr(dynamics, name), getattr(third, name)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)
    assert all(
        getattr(dynamics, name) is tensor for name, tensor in zip(names, tensors, strict=True)
    )


def test_without_a_change_nothing_is_evaluated_twice(float32_potential, ethanol, monkeypatch):
    dynamics = LangevinReplicas(replicas_of(float32_potential, ethanol, 2), ethanol.positions)
    calls = []
    evaluate = dynamics._evaluate
    monkeypatch.setattr(dynamics, "_evaluate", lambda: calls.append(evaluate()))
    for _ in range(3):
        dynamics.run(1)
        dynamics.velocities.neg_()
    assert len(calls) == 3


def test_a_replica_that_was_repaired_goes_on(float32_potential, ethanol):
    replicas = replicas_of(float32_potential, ethanol, 3)
    dynamics = LangevinReplicas(replicas, ethanol.positions, temperature=300.0, max_force=50.0)
    dynamics.run(1)
    good = [dynamics.positions.clone(), dynamics.velocities.clone()]
    for bad in (torch.nan, 1e-3):
        dynamics.positions[1, 4] = dynamics.positions[1, 3] + bad
        for _ in range(2):
            with pytest.raises((NonFiniteForceError, AbsurdForceError), match="of replica 1 is"):
                dynamics.run(1)
        dynamics.positions.copy_(good[0])
        dynamics.velocities.copy_(good[1])
        dynamics.run(1)
        assert torch.isfinite(dynamics.positions).all()
    # The same where it is the run that leads there
    dynamics.max_force = 1e-3
    with pytest.raises(AbsurdForceError):
        dynamics.run(1)
    dynamics.max_force = 50.0
    dynamics.run(1)


def test_without_friction_energy_is_conserved(float64_potential, ethanol):
    replicas = replicas_of(float64_potential, ethanol, 3)
    dynamics = LangevinReplicas(
        replicas, ethanol.positions, temperature=100.0, timestep=0.1, friction=0.0
    )
    before = total_energies(dynamics)
    dynamics.run(100)
    assert dynamics.steps == 100
    assert (dynamics.positions.numpy() - ethanol.positions).std() > 0.01
    torch.testing.assert_close(total_energies(dynamics), before, rtol=0, atol=1e-4)
    # Copies with velocities of their own go their own ways.
    assert (dynamics.positions[0] - dynamics.positions[1]).abs().max() > 0.01


def test_each_replica_has_the_temperature_it_was_given(ethanol):
    dynamics = LangevinReplicas(
        Replicas(general_file(), ethanol.numbers, 40),
        ethanol.positions,
        temperature=np.repeat([100.0, 500.0], 20),
        friction=200.0,
    )
    drawn = dynamics.temperatures().view(2, 20).mean(1)
    assert drawn[0] == pytest.approx(100.0, rel=0.2)
    assert drawn[1] == pytest.approx(500.0, rel=0.2)
    dynamics.velocities.zero_()
    dynamics.run(60)
    means = []
    for _ in range(15):
        dynamics.run(6)
        means.append(dynamics.temperatures().view(2, 20).mean(1).tolist())
    cold, hot = np.mean(means, axis=0)
    # 20 replicas of 27 degrees of freedom, some ten times: 3 % of statistical error.
    assert cold == pytest.approx(100.0, rel=0.15)
    assert hot == pytest.approx(500.0, rel=0.15)


def test_the_seed_fixes_a_run(float32_potential, ethanol):
    def run(seed):
        replicas = replicas_of(float32_potential, ethanol, 2)
        dynamics = LangevinReplicas(replicas, ethanol.positions, seed=seed)
        dynamics.run(3)
        return dynamics.positions

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_bad_force_names_replica_and_atom(float32_potential, ethanol):
    replicas = replicas_of(float32_potential, ethanol, 3)
    dynamics = LangevinReplicas(replicas, ethanol.positions, temperature=300.0)
    dynamics.positions[2, 4] = torch.nan
    with pytest.raises(NonFiniteForceError, match=r"atom \d .* of replica 2 is not finite"):
        dynamics.run(1)
    with pytest.raises(AbsurdForceError, match=r"replica 0 is .* more than max_force = 0.001"):
        LangevinReplicas(replicas, ethanol.positions, max_force=0.001)


def test_what_does_not_fit_is_refused(float32_potential, ethanol, water_box):
    with pytest.raises(ConfigError, match="2 to 64 atoms, found 1"):
        replicas_of(float32_potential, ethanol[:1], 3)
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        replicas_of(float32_potential, ethanol, 0)
    replicas = replicas_of(float32_potential, ethanol, 3)
    for options, message in (
        ({"positions": ethanol.positions[:-1]}, r"positions of shape .*\(3, 9, 3\)"),
        ({"temperature": [300.0, 300.0]}, "one temperature in K or 3 of them"),
        ({"timestep": 0.0}, "timestep must be above zero"),
        ({"friction": -1.0}, "timestep must be above zero, and friction not below it"),
    ):
        with pytest.raises(ConfigError, match=message):
            LangevinReplicas(replicas, **{"positions": ethanol.positions, **options})


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_on_a_gpu(compile, float32_potential, ethanol):
    """Recorded steps are the steps of the CPU; noise differs, and so there is none here."""
    positions = rattled(ethanol, 40)
    found = []
    for device in ("cpu", "cuda"):
        replicas = replicas_of(
            float32_potential, ethanol, 40, device=device, compile=compile and device == "cuda"
        )
        dynamics = LangevinReplicas(replicas, positions, temperature=0.0, friction=0.0)
        dynamics.run(20)
        found.append(dynamics)
    for name in ("positions", "energies", "forces"):
        on_cpu, on_gpu = (getattr(dynamics, name).cpu() for dynamics in found)
        torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-3)


@pytest.mark.gpu
def test_temperature_on_a_gpu(ethanol):
    replicas = Replicas(general_file(), ethanol.numbers, 40, device="cuda")
    warm = LangevinReplicas(replicas, ethanol.positions, temperature=300.0, friction=50.0)
    warm.run(200)
    assert warm.temperatures().mean().item() == pytest.approx(300.0, rel=0.2)
