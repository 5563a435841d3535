"""Token mixers: symmetries of networks and of their blocks, what they can tell apart, that they learn."""

import math
from functools import partial
from itertools import pairwise

import mdtraj
import numpy as np
import pytest
import torch
from e3nn import o3
from mdtraj.core.element import hydrogen, oxygen
from scipy.spatial.transform import Rotation
from torch import Tensor

from featurizers import TrajectoryFeaturizer
from featurizers.mixers import MIXERS, MixerNetwork, build_network
from featurizers.mixers.deepsets import LinearExponential, LinearPower
from featurizers.mixers.pooling import MeanPooling
from featurizers.mixers.sphere import SphericalNonlinearity, sphere_quadrature
from forcefield.errors import ConfigError, DataError

FRAMES, TOKENS, SCALARS, VECTORS, OUTPUTS = 12, 5, 6, 4, 3

BLOCKS = ["transformer", "attention", "gamma"]

Inputs = tuple[Tensor, Tensor, Tensor]


def random_inputs(frames: int = FRAMES, vectors: int = VECTORS, tokens: int = TOKENS) -> Inputs:
    rng = np.random.default_rng(1)
    shapes = (frames, tokens, SCALARS), (frames, tokens, 3, vectors), (frames, tokens, 3)
    s, v, r = (torch.from_numpy(rng.normal(size=shape)) for shape in shapes)
    return s, v, 4.0 * r


def build(name: str, vectors: int = VECTORS, **options: object) -> MixerNetwork:
    torch.manual_seed(0)
    width = 16
    return build_network(
        name, SCALARS, vectors, TOKENS, OUTPUTS, width, 2, **{"softmax": False, **options}
    ).double()


def moved(inputs: Inputs, seed: int = 0, mirror: bool = False) -> Inputs:
    """The same frames turned, each in its own way, and shifted; mirrored on demand."""
    s, v, r = inputs
    turns = torch.from_numpy(Rotation.random(len(s), random_state=seed).as_matrix())
    if mirror:
        turns = -turns
    shift = torch.from_numpy(np.random.default_rng(seed).normal(0, 5, (len(s), 1, 3)))
    return s, turned(turns, v), torch.einsum("bxy,bty->btx", turns, r) + shift


def turned(turns: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("bxy,btyc->btxc", turns, vectors)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("vectors", [VECTORS, 0])
@pytest.mark.parametrize("name", MIXERS)
def test_turning_and_moving_changes_nothing(name, vectors):
    network, inputs = build(name, vectors), random_inputs(vectors=vectors)
    network.standardize(*inputs[:2])
    result = network(*inputs)
    assert result.shape == (FRAMES, OUTPUTS)
    assert float(result.detach().std(0).min()) > 1e-2
    assert distance(network(*moved(inputs)), result) < 1e-12


@pytest.mark.parametrize("name", MIXERS)
def test_mirror_images_differ_by_triple_products_only(name):
    inputs = random_inputs()
    mirrored = moved(inputs, mirror=True)
    chiral, achiral = build(name), build(name, chiral=False)
    assert distance(chiral(*mirrored), chiral(*inputs)) > 1e-3
    assert distance(achiral(*mirrored), achiral(*inputs)) < 1e-12


@pytest.mark.parametrize("name", MIXERS)
def test_mirror_images_without_vectors(name):
    """Positions are enough for equivariant attention; the others have no orientation to work with."""
    inputs = random_inputs(vectors=0)
    network = build(name, vectors=0)
    difference = distance(network(*moved(inputs, mirror=True)), network(*inputs))
    assert difference > 1e-4 if name == "attention" else difference < 1e-12


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "mlp"])
def test_permuted_tokens(name):
    inputs = random_inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = tuple(values[:, order] for values in inputs)
    alike, distinct = build(name, token_identity=False), build(name)
    for network in (alike, distinct):
        network.standardize(*inputs[:2])
    assert distance(alike(*permuted), alike(*inputs)) < 1e-12
    assert distance(distinct(*permuted), distinct(*inputs)) > 1e-3


def test_permuted_tokens_of_the_plain_perceptron():
    inputs, network = random_inputs(), build("mlp")
    assert distance(network(*(x.flip(1) for x in inputs)), network(*inputs)) > 1e-3


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("chiral", [False, True])
def test_blocks_are_equivariant(name, chiral):
    s, v, r = random_inputs()
    network = build(name, token_identity=False, chiral=chiral)
    scalars, vectors = network.tokens(s, v, r)
    turns = torch.from_numpy(Rotation.random(FRAMES, random_state=4).as_matrix())
    if not chiral:
        turns[::2] *= -1.0
    after = network.tokens(s, turned(turns, v), torch.einsum("bxy,bty->btx", turns, r) + 7.0)
    assert distance(after[0], scalars) < 1e-12
    assert distance(after[1], turned(turns, vectors)) < 1e-12
    order = torch.tensor([1, 4, 0, 2, 3])
    after = network.tokens(s[:, order], v[:, order], r[:, order])
    assert distance(after[0], scalars[:, order]) < 1e-12
    assert distance(after[1], vectors[:, order]) < 1e-12
    # Tokens do hear of one another.
    s[:, 0] += 1.0
    assert float((network.tokens(s, v, r)[0] - scalars)[:, 1:].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", MIXERS)
def test_frames_of_a_batch_are_independent(name):
    inputs, network = random_inputs(), build(name)
    alone = torch.cat([network(*(x[k : k + 1] for x in inputs)) for k in range(FRAMES)])
    assert distance(alone, network(*inputs)) < 1e-12


@pytest.mark.parametrize("vectors", [VECTORS, 0])
@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_finite_and_reach_every_parameter(name, vectors):
    network = build(name, vectors, **({"sphere": True} if name == "attention" else {}))
    inputs = random_inputs(vectors=vectors)
    # Vectors that vanish by symmetry, and two tokens in one place.
    inputs[1][0] = 0.0
    inputs[2][0, 1] = inputs[2][0, 0]
    for x in inputs:
        x.requires_grad_()
    network(*inputs).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        # Where features have no vectors, the first block of "attention" has only zeros to read.
        assert parameter.grad.any() or (vectors == 0 and key.startswith("blocks.0.vector_")), key
    for x in inputs:
        assert x.grad is None or torch.isfinite(x.grad).all()
    assert (inputs[2].grad is not None) == (name in ("attention", "gamma"))


def test_standardized_features():
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-2, 2, (TOKENS, SCALARS))
    scalars = (scale * rng.normal(1.0, 1.0, (500, TOKENS, SCALARS))).astype(np.float32)
    vectors = rng.normal(0, 0.03, (500, TOKENS, 3, VECTORS)).astype(np.float32)
    network = build_network("pooling", SCALARS, VECTORS, TOKENS, OUTPUTS)
    network.standardize(scalars, vectors)
    s, v = network.standardizer(torch.from_numpy(scalars), torch.from_numpy(vectors))
    wide = torch.from_numpy(scale) > 1e-3 * 30
    assert float(s.mean(0).abs()[wide].max()) < 1e-3
    np.testing.assert_allclose(s.std(0)[wide], 1.0, atol=2e-3)
    np.testing.assert_allclose(v.square().mean((0, 2)), 1.0, atol=1e-5)

    alike = build_network("pooling", SCALARS, VECTORS, TOKENS, OUTPUTS, token_identity=False)
    alike.standardize(scalars, vectors)
    s, v = alike.standardizer(torch.from_numpy(scalars), torch.from_numpy(vectors))
    np.testing.assert_allclose(s.std((0, 1)), 1.0, atol=2e-3)
    np.testing.assert_allclose(v.square().mean((0, 1, 2)), 1.0, atol=1e-5)

    restored = build_network("pooling", SCALARS, VECTORS, TOKENS, OUTPUTS)
    restored.load_state_dict(network.state_dict())
    assert torch.equal(restored.standardizer.scalar_spread, network.standardizer.scalar_spread)


def test_channels_that_do_not_vary_stay_small():
    scalars, vectors, _ = random_inputs(100)
    scalars[:, 0, 0] = 3.0 + 1e-9 * scalars[:, 0, 0]
    vectors[:, 1, :, 2] = 0.0
    network = build("mlp")
    network.standardize(scalars, vectors)
    s, v = network.standardizer(scalars, vectors)
    assert float(s[:, 0, 0].abs().max()) < 1e-5
    assert torch.isfinite(s).all()
    assert torch.isfinite(v).all()
    network.standardize(scalars[:1], 0.0 * vectors[:1])
    assert all(torch.isfinite(x).all() for x in network.standardizer(scalars, vectors))


def test_training_data_that_cannot_be():
    scalars, vectors, _ = random_inputs()
    network = build("pooling")
    with pytest.raises(DataError, match="no frames"):
        network.standardize(scalars[:0], vectors[:0])
    vectors[3, 1, 0, 2] = math.inf
    with pytest.raises(DataError, match="a vector feature"):
        network.standardize(scalars, vectors)
    scalars[2, 0, 0] = math.nan
    with pytest.raises(DataError, match="a scalar feature"):
        network.standardize(scalars, vectors)


def test_states_have_probabilities():
    states = build("attention", softmax=True)(*random_inputs())
    assert float(states.detach().min()) > 0.0
    np.testing.assert_allclose(states.detach().sum(1), 1.0)


def test_impossible_networks():
    with pytest.raises(ConfigError, match=r"unknown mixer 'mean'; known are mlp, .*, gamma"):
        build("mean")
    with pytest.raises(ConfigError, match=r"'gamma' has no option 'heads'; it has .*cutoff"):
        build("gamma", heads=2)
    with pytest.raises(ConfigError, match="'mlp' has no option 'token_identity'"):
        build("mlp", token_identity=False)
    with pytest.raises(ConfigError, match=r"3 heads: for 'attention' .* multiple of 12"):
        build("attention", heads=3)
    with pytest.raises(ConfigError, match="routing starts at 2, found 1"):
        build("gamma", routing=1)
    with pytest.raises(ConfigError, match=r"cutoff .* found 0"):
        build("gamma", cutoff=0)
    with pytest.raises(ConfigError, match="layers starts at 1"):
        build_network("mlp", SCALARS, VECTORS, TOKENS, OUTPUTS, layers=0)


# What sets of tokens can be told apart.


@pytest.mark.parametrize(
    "make", [partial(LinearPower, powers=4), partial(LinearExponential, size=16)], ids=["lp", "le"]
)
@pytest.mark.parametrize(
    "sets",
    [
        # Equal sums.
        ([[-1.0, 0.0], [1.0, 0.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0], [0.5, 0.5]]),
        # Equal sums and squares of each channel, and even the same numbers in each channel.
        ([[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]),
    ],
    ids=["sums", "channels"],
)
def test_sets_of_equal_sums_are_told_apart(make, sets):
    code = make(2)
    one, other = (torch.tensor([tokens]) for tokens in sets)
    mean = MeanPooling(2, 0, gated=False, chiral=False)
    vectors = torch.zeros(1, one.shape[1], 3, 0)
    assert distance(mean(one, vectors), mean(other, vectors)) < 1e-7
    assert distance(code(one), code(other)) > 1e-2
    assert distance(code(one.flip(1)), code(one)) < 1e-5


def test_power_sums_of_as_many_powers_as_tokens_give_the_tokens_back():
    t = 5
    torch.manual_seed(1)
    code = LinearPower(3, powers=t).double()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, t, 3)))
    sums = code(x).detach().reshape(t, 3).numpy() * t  # p_n of each direction
    expected = np.sort(torch.tanh(code.linear(x)).detach()[0].numpy(), axis=0)
    for k in range(3):
        # Newton: n e_n = Σ_m (-1)^(m-1) e_(n-m) p_m; tokens are roots of Σ_n (-1)^n e_n z^(t-n).
        e = [1.0]
        for n in range(1, t + 1):
            terms = [(-1) ** (m - 1) * e[n - m] * sums[m - 1, k] for m in range(1, n + 1)]
            e.append(sum(terms) / n)
        roots = np.roots([(-1) ** n * e[n] for n in range(t + 1)])
        np.testing.assert_allclose(np.sort(roots.real), expected[:, k], atol=1e-7)


def test_exponentials_are_bounded():
    code = LinearExponential(4, size=8)
    torch.manual_seed(0)
    with torch.no_grad():
        code.linear.weight *= 100.0
        largest = float(code(1e3 * torch.randn(500, 2, 4)).max())
    assert 100.0 < largest <= math.exp(8.0) * 1.001


# Nonlinearity on the sphere.


@pytest.mark.parametrize("order", [2, 4, 6])
def test_quadrature_is_exact_up_to_its_degree(order):
    points, weights = sphere_quadrature(order)
    assert len(points) == 2 * order**2
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-14)
    for degree in range(1, 2 * order):
        harmonics = o3.spherical_harmonics(degree, points, normalize=True)
        assert float((weights @ harmonics).abs().max()) < 1e-13
    beyond = o3.spherical_harmonics(2 * order, points, normalize=True)
    assert float((weights @ beyond).abs().max()) > 1e-3


def sphere_block(order: int) -> SphericalNonlinearity:
    """The same weights for every order, three times as large as they are at first."""
    torch.manual_seed(2)
    block = SphericalNonlinearity(8, 4, order).double()
    exact, _ = sphere_quadrature(order)
    block.evaluate.copy_(exact)
    with torch.no_grad():
        block.linear.weight *= 3.0
    return block


def added(block: SphericalNonlinearity, vectors: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        s, v = block(torch.ones(len(vectors), TOKENS, 8, dtype=torch.float64), vectors)
    return s, v - vectors


def test_aliasing_falls_with_the_number_of_points():
    v = random_inputs()[1]
    turns = torch.from_numpy(Rotation.random(FRAMES, random_state=1).as_matrix())
    errors = []
    for order in (2, 4, 6, 8):
        block = sphere_block(order)
        s, dv = added(block, v)
        turned_s, turned_dv = added(block, turned(turns, v))
        size = float(dv.square().mean().sqrt())
        errors.append(max(distance(turned_s, s), distance(turned_dv, turned(turns, dv))) / size)
    assert errors[0] > 1e-2
    assert all(after < before / 3 for before, after in pairwise(errors))
    assert errors[1] < 2e-2  # the default order, at weights that are large
    assert errors[3] < 3e-4


def test_sphere_has_the_integrals_of_a_fine_grid_and_its_parity():
    v = random_inputs()[1]
    coarse, fine = added(sphere_block(8), v), added(sphere_block(30), v)
    assert distance(coarse[0], fine[0]) < 1e-4
    assert distance(coarse[1], fine[1]) < 1e-4
    mirrored = added(sphere_block(4), -v)
    plain = added(sphere_block(4), v)
    assert distance(mirrored[0], plain[0]) < 1e-6
    assert distance(mirrored[1], -plain[1]) < 1e-6


def test_attention_on_the_sphere_is_nearly_invariant():
    inputs = random_inputs()
    network = build("attention", sphere=True)
    result = network(*inputs)
    spread = float(result.detach().std())
    assert distance(network(*moved(inputs)), result) < 1e-4 * spread
    finer = build("attention", sphere=True, sphere_order=10)
    assert distance(finer(*moved(inputs)), finer(*inputs)) < 1e-7 * spread
    assert distance(build("attention")(*inputs), result) > 1e-2


# Contacts and routing of GAMMA.


def test_gamma_hears_no_further_than_two_hops_over_contacts():
    s, v, _ = random_inputs()
    r = torch.zeros(FRAMES, TOKENS, 3, dtype=torch.float64)
    r[:, :, 0] = 5.0 * torch.arange(TOKENS)  # neighbours are in contact, next neighbours are not
    block = build("gamma", token_identity=False).blocks[0]
    s = torch.cat([s, s.square(), s[:, :, :4].exp()], dim=2)  # as wide as the block
    before, _ = block(s, v, r)
    s[:, 0, 3] += 1.0
    change = (block(s, v, r)[0] - before).detach().abs().amax((0, 2))
    assert float(change[:3].min()) > 1e-4
    assert float(change[3:].max()) < 1e-12


def test_contacts_end_smoothly():
    block = build("gamma", cutoff=6.0).blocks[0]
    r = torch.zeros(3, 2, 3, dtype=torch.float64)
    r[:, 1, 2] = torch.tensor([1.0, 5.9, 6.1])
    contacts = block.contacts(r)
    np.testing.assert_allclose(torch.diagonal(contacts, dim1=1, dim2=2), 1.0, atol=1e-6)
    assert float(contacts[0, 0, 1]) > 0.99
    assert 0.0 < float(contacts[1, 0, 1]) < 1e-3
    assert float(contacts[2, 0, 1]) == 0.0


def test_rounds_of_routing_matter():
    inputs = random_inputs()
    assert distance(build("gamma", routing=3)(*inputs), build("gamma")(*inputs)) > 1e-3


# Learning: each mixer has a task that a linear model of all its inputs cannot solve.


def explained(network: MixerNetwork, inputs: Inputs, target: Tensor, steps: int = 120) -> float:
    """Train on three quarters of the frames; explained variance of the rest."""
    inputs, target = tuple(x.float() for x in inputs), target.float()
    target = (target - target.mean()) / target.std()
    train = 3 * len(target) // 4
    network = network.float()
    network.standardize(inputs[0][:train], inputs[1][:train])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        batch = torch.randint(train, (128,))
        loss = (network(*(x[batch] for x in inputs))[:, 0] - target[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = network(*(x[train:] for x in inputs))[:, 0] - target[train:]
    return 1.0 - float(error.square().mean() / target[train:].var())


def explained_linearly(inputs: Inputs, target: Tensor) -> float:
    features = torch.cat([x.flatten(1) for x in inputs], dim=1)
    features = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    train = 3 * len(target) // 4
    weights = torch.linalg.lstsq(features[:train], target[:train, None]).solution
    error = (features[train:] @ weights)[:, 0] - target[train:]
    return 1.0 - float(error.square().mean() / target[train:].var())


@pytest.mark.parametrize("name", ["deepsets-lp", "deepsets-le", *BLOCKS])
def test_learning_how_much_tokens_differ(name):
    inputs = random_inputs(2000, vectors=0)
    inputs[2][:] *= 0.1  # all in contact
    target = inputs[0][:, :, 0].var(1)
    assert explained_linearly(inputs, target) < 0.1
    assert explained(build("pooling", 0, token_identity=False), inputs, target) < 0.2
    assert explained(build(name, 0, token_identity=False), inputs, target) > 0.7


def test_learning_a_product_of_two_tokens():
    inputs = random_inputs(4000, vectors=0)
    target = inputs[0][:, 0, 0] * inputs[0][:, 3, 1]
    assert explained_linearly(inputs, target) < 0.1
    assert explained(build("pooling", 0, token_identity=False), inputs, target) < 0.2
    assert explained(build("mlp", 0), inputs, target, steps=300) > 0.7


def test_learning_the_length_of_a_sum_of_vectors():
    inputs = random_inputs(2000)
    target = inputs[1][..., 0].sum(1).norm(dim=1)
    assert explained_linearly(inputs, target) < 0.1
    assert explained(build("pooling"), inputs, target) > 0.7


def test_learning_the_size_of_the_frame_from_positions():
    inputs = random_inputs(2000, vectors=0)
    target = inputs[2].var(1).sum(1).sqrt()  # radius of gyration
    assert explained_linearly(inputs, target) < 0.1
    assert explained(build("transformer", 0), inputs, target) < 0.1
    assert explained(build("attention", 0), inputs, target) > 0.7


def test_learning_what_neighbours_have_in_common():
    inputs = random_inputs(4000, vectors=0)
    s, _, r = inputs
    s[:, :, 1:] = 0.0
    near = (torch.cdist(r, r) < 6.0).to(s.dtype)
    target = (torch.einsum("bij,bj->bi", near, s[:, :, 0]) / near.sum(2)).abs().mean(1)
    assert explained_linearly(inputs, target) < 0.1
    blind = explained(build("transformer", 0, token_identity=False), inputs, target)
    assert explained(build("gamma", 0, token_identity=False), inputs, target) > blind + 0.1


@pytest.mark.parametrize("name", MIXERS)
def test_learning_handedness(name):
    """Without triple products it cannot be learnt: see the mirror images above."""
    inputs = random_inputs(2000)
    a, b, c = inputs[1][:, 0, :, :3].unbind(-1)
    target = torch.sign((torch.linalg.cross(a, b) * c).sum(1))
    assert explained_linearly(inputs, target) < 0.1
    assert explained(build(name), inputs, target) > 0.2


@pytest.mark.slow
def test_learning_handedness_from_positions_alone():
    inputs = random_inputs(4000, vectors=0)
    a, b, c = (inputs[2][:, 1:4] - inputs[2][:, :1]).unbind(1)
    target = torch.sign((torch.linalg.cross(a, b) * c).sum(1))
    assert explained_linearly(inputs, target) < 0.1
    assert explained(build("attention", 0), inputs, target, steps=400) > 0.7


def hydrogen_peroxide(dihedral: float, frames: int) -> mdtraj.Trajectory:
    """H2O2 with some noise; the dihedral in degrees, ±112 at its two minima."""
    angle, bend = math.radians(dihedral), math.radians(100.0)
    o1, o2 = np.zeros(3), np.array([1.46, 0.0, 0.0])
    out = 0.97 * math.sin(bend)
    h1 = np.array([0.97 * math.cos(bend), out, 0.0])
    h2 = o2 + np.array([-h1[0], out * math.cos(angle), out * math.sin(angle)])
    positions = np.array([h1, o1, o2, h2])
    noise = np.random.default_rng(0).normal(0, 0.03, (frames, 4, 3))
    topology = mdtraj.Topology()
    residue = topology.add_residue("HOOH", topology.add_chain())
    for name, element in (("H1", hydrogen), ("O1", oxygen), ("O2", oxygen), ("H2", hydrogen)):
        topology.add_atom(name, element, residue)
    return mdtraj.Trajectory((positions + noise) / 10.0, topology)


@pytest.fixture(scope="module")
def gauche_forms() -> tuple[Inputs, Inputs]:
    featurizer = TrajectoryFeaturizer.pretrained()
    forms = []
    for dihedral in (112.0, -112.0):
        features = featurizer.transform(hydrogen_peroxide(dihedral, frames=200))
        arrays = features.scalars, features.vectors, features.positions
        forms.append(tuple(torch.from_numpy(array) for array in arrays))
    return forms[0], forms[1]


@pytest.mark.parametrize("name", MIXERS)
def test_the_two_gauche_forms_are_told_apart(name, gauche_forms):
    """Enantiomers of C2 symmetry, which have the same scalars."""
    order = torch.from_numpy(np.random.default_rng(1).permutation(400))
    inputs = tuple(torch.cat(arrays)[order] for arrays in zip(*gauche_forms, strict=True))
    target = torch.sign(199.5 - order)
    options = {} if name == "mlp" else {"token_identity": False}
    sizes = inputs[0].shape[2], inputs[1].shape[3], 4, 1, 16
    torch.manual_seed(0)
    assert explained(build_network(name, *sizes, **options), inputs, target, steps=60) > 0.8


@pytest.mark.parametrize("name", MIXERS)
def test_the_two_gauche_forms_are_the_same_without_triple_products(name, gauche_forms):
    s, v, r = gauche_forms[0]
    mirror = torch.tensor([1.0, 1.0, -1.0])
    network = build_network(name, s.shape[2], v.shape[3], 4, 1, 16, chiral=False)
    reflected = network(s, v * mirror[:, None], r * mirror)
    assert distance(network(s, v, r), reflected) < 1e-5
