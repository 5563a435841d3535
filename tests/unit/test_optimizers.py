"""Muon: what it does to matrices, that the rest moves as AdamW, that its state survives."""

import copy

import pytest
import torch
from torch import nn

from tests.conftest import ARCHITECTURES, make_potential
from training import optimizers
from training.optimizers import Muon, _padded, _shape_by_shape, orthogonalize, split_parameters


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 40), (2, 40, 6)])
def test_singular_values_become_about_one(shape):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_the_singular_vectors_stay():
    matrix = torch.randn(1, 7, 9, dtype=torch.float64, generator=torch.manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.mT @ orthogonalize(matrix) @ v.mT
    torch.testing.assert_close(core, torch.diag_embed(core.diagonal(dim1=1, dim2=2)))


def test_matrices_move_by_the_learning_rate():
    weight = nn.Parameter(torch.zeros(16, 32))
    optimizer = Muon([weight], [], lr=0.01)
    weight.grad = torch.randn(16, 32, generator=torch.manual_seed(0))
    optimizer.step()
    root_mean_square = weight.detach().square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(0.2 * 0.01, rel=0.3)


def test_stacked_matrices_are_treated_one_by_one():
    """A stack moves as its matrices do, and those of one shape do not mix."""
    generator = torch.manual_seed(1)
    gradients = torch.randn(3, 8, 10, generator=generator)
    stack = nn.Parameter(torch.zeros(3, 8, 10))
    single = [nn.Parameter(torch.zeros(8, 10)) for _ in range(3)]
    stack.grad = gradients.clone()
    for parameter, gradient in zip(single, gradients, strict=True):
        parameter.grad = gradient.clone()
    Muon([stack], [], lr=0.1).step()
    for parameter in single:
        Muon([parameter], [], lr=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]))


def test_other_parameters_move_as_adamw_moves_them():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    muon = Muon([], [ours], lr=0.02)
    adamw = torch.optim.AdamW([theirs], lr=0.02, amsgrad=True, weight_decay=0.0)
    for step in range(5):
        for parameter, optimizer in ((ours, muon), (theirs, adamw)):
            parameter.grad = torch.cos(parameter.detach() * (step + 1))
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))
    data = torch.randn(16, 8)

    def steps(net: nn.Module, optimizer: Muon, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            net(data).square().mean().backward()
            optimizer.step()

    optimizer = Muon(*split_parameters(network), lr=0.01)
    steps(network, optimizer, 3)
    twin = copy.deepcopy(network)
    restored = Muon(*split_parameters(twin), lr=0.01)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(network, optimizer, 3)
    steps(twin, restored, 3)
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_padded_matrices_move_as_those_of_one_shape_do():
    generator = torch.manual_seed(0)
    shapes = [(8, 8), (3, 6, 12), (16, 5), (5, 16), (8, 8)]
    directions = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
    for found, expected in zip(_padded(directions), _shape_by_shape(directions), strict=True):
        torch.testing.assert_close(found, expected)


def test_large_matrices_move_alike_in_either_precision(monkeypatch):
    directions = [torch.randn(2, 96, 128, generator=torch.manual_seed(0))]
    moves = {}
    for has in (True, False):
        monkeypatch.setattr(optimizers, "_has_bfloat16", lambda has=has: has)
        (moves[has],) = _shape_by_shape(directions)
    assert moves[True].dtype == torch.float32
    assert not torch.equal(moves[True], moves[False])
    assert (moves[True] - moves[False]).norm() < 0.02 * moves[False].norm()


def test_the_learning_rate_may_be_a_tensor():
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))]
    networks.append(copy.deepcopy(networks[0]))
    data = torch.randn(16, 8)
    for network, rate in zip(networks, (0.01, torch.tensor(0.01)), strict=True):
        optimizer = Muon(*split_parameters(network), lr=rate, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            network(data).square().mean().backward()
            optimizer.step()
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_parameter_of_a_potential_is_in_one_group(name):
    potential = make_potential(name)
    matrices, others = split_parameters(potential)
    assert {id(p) for p in potential.parameters()} == {id(p) for p in [*matrices, *others]}
    assert len(matrices) + len(others) == len(list(potential.parameters()))
    assert potential.representation.embedding.weight not in set(matrices)
    assert potential.readout.scale not in set(matrices)
