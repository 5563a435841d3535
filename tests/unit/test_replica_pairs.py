"""Pairs within the cutoff of many copies of a molecule, looked for and as a list of fixed length."""

import math

import numpy as np
import pytest
import torch
from ase.build import molecule

from calculators.replica_pairs import WORTH_LISTING, ClosePairs, PairList
from forcefield.neighbors import MoleculePairs
from tests.no_waiting import NoWaiting

CUTOFF = 4.0
COPIES = 50
CHAIN = molecule("C3H9C")  # 13 atoms, 78 pairs


def chains(scale):
    noise = np.random.default_rng(1).normal(size=(COPIES, len(CHAIN), 3))
    return torch.tensor(scale * CHAIN.positions + 0.1 * noise)


def close_pairs():
    return ClosePairs(len(CHAIN), COPIES, CUTOFF, torch.device("cpu"))


def columns(edge_index):
    return [tuple(pair) for pair in edge_index.T.tolist()]


@pytest.mark.parametrize("scale", [0.3, 1.5, 100.0])
def test_each_copy_has_the_pairs_of_a_molecule(scale):
    positions = chains(scale)
    pairs = close_pairs()
    found = columns(pairs.edges(positions))
    expected = []
    for k, copy in enumerate(positions.numpy()):
        edge_index, _ = MoleculePairs(len(CHAIN), CUTOFF).within_cutoff(copy)
        expected += columns(edge_index + k * len(CHAIN))
    assert found == expected
    total = pairs.every.shape[1]
    assert (len(found) == total) == (scale == 0.3)
    assert (len(found) == 0) == (scale == 100.0)


@pytest.mark.parametrize("scale", [1.4, 1.5, 1.6, 100.0])
def test_a_list_holds_the_close_pairs_and_others_beyond_the_cutoff(scale):
    pairs = close_pairs()
    listed = PairList(pairs, chains(1.4))
    positions = chains(scale)
    close = columns(pairs.edges(positions))
    found = columns(listed.edges(positions))
    assert len(found) == listed.length < pairs.every.shape[1]
    assert found[: len(close)] == close
    # None twice, and no atom with itself: they are some of all pairs, in order.
    rest = [pair for pair in columns(pairs.every) if pair not in set(close)]
    assert len(close) < listed.length
    assert found[len(close) :] == rest[: listed.length - len(close)]
    assert not listed.overflowed()


def test_a_list_that_is_too_short_says_so_and_grows():
    pairs = close_pairs()
    listed = PairList(pairs, chains(1.6))
    short = listed.length
    listed.edges(chains(1.4))
    listed.edges(chains(1.6))  # What was missing once is not forgotten.
    assert listed.overflowed()
    listed.grow()
    assert not listed.overflowed()
    assert listed.length > short
    close = columns(pairs.edges(chains(1.4)))
    assert columns(listed.edges(chains(1.4)))[: len(close)] == close
    assert not listed.overflowed()


def test_a_list_that_spares_little_is_all_pairs():
    pairs = close_pairs()
    listed = PairList(pairs, chains(100.0))
    assert listed.length == 0
    listed.edges(chains(0.3))
    assert listed.overflowed()
    listed.grow()
    assert listed.edges(chains(100.0)) is pairs.every
    assert not listed.overflowed()
    few = ClosePairs(len(CHAIN), WORTH_LISTING // 78, CUTOFF, torch.device("cpu"))
    assert PairList(few, chains(100.0)[: WORTH_LISTING // 78]).length == few.every.shape[1]


@pytest.mark.parametrize("nowhere", [math.nan, math.inf, -math.inf])
def test_an_atom_that_is_nowhere_keeps_its_pairs(nowhere):
    positions = chains(100.0)
    positions[7, 3, 1] = nowhere
    found = close_pairs().edges(positions)
    assert found.shape[1] == len(CHAIN) - 1
    assert (found == 7 * len(CHAIN) + 3).any(0).all()


def test_a_list_does_not_wait_for_the_device():
    pairs = close_pairs()
    listed = PairList(pairs, chains(1.5))
    with NoWaiting():
        listed.edges(chains(1.4))
    with pytest.raises(AssertionError, match="nonzero"), NoWaiting():
        pairs.edges(chains(1.4))
