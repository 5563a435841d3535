"""Neighbour lists: random cases against a sum over images, and what a list costs.

    python benchmarks/neighbors.py --cases 100000       # wrong lists are printed; exit status 1 if any
    python benchmarks/neighbors.py --cost               # a table up to 20,000 atoms, one thread

A case is one structure: a random cell (cubic, sheared, left-handed, flat, thinner than the cutoff), any
periodicity, atoms inside the cell or several cells outside, on a lattice or on top of its corners. The
structures of one trajectory follow on one another as in a simulation (atoms move, the cell changes with
them or alone, atoms are wrapped back, the periodicity or the number of atoms changes), and each is given
to three lists: vesin from scratch, the list with a skin, and the one inside OpenMM's TorchForce.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import torch

from calculators.torchforce import Wrapping, wrap_potential
from forcefield.export import ExportedPotential, quiet_torchscript
from forcefield.neighbors import VerletList, neighbor_pairs

Pairs = tuple[np.ndarray, np.ndarray]
"""Atoms j and i (2, e) and cell shifts (e, 3)."""

STEPS = 25
"""Structures of a trajectory, at most."""

TIE = 1e-9
"""Å; a pair this close to the cutoff may be in the list or not: the last digit decides."""


@dataclass(frozen=True)
class Structure:
    """Positions (n, 3) and cell (3, 3) in Å, and periodicity (3,)."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray

    def changed(
        self,
        positions: np.ndarray | None = None,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | None = None,
    ) -> "Structure":
        """Another structure with what is given."""
        return Structure(
            self.positions if positions is None else positions,
            self.cell if cell is None else cell,
            self.pbc if pbc is None else pbc,
        )


def images(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every i, j and image S, with no regard to distance but for S: those that could be near.

    Component k of r_j - r_i + S @ cell along the normal of the other periodic vectors is
    (f_j - f_i + S)_k h_k, with fractional coordinates f and heights h, so |S_k| is bounded.

    Returns:
        Shifts (s, 3), vectors (n, n, s, 3) from i (first) to j, Å, and distances (n, n, s).
    """
    reach = np.zeros(3, dtype=int)
    if structure.pbc.any():
        duals = np.linalg.pinv(structure.cell[structure.pbc])
        fractional = structure.positions @ duals
        spread = np.ptp(fractional, axis=0)
        reach[structure.pbc] = np.ceil(spread + cutoff * np.linalg.norm(duals, axis=0) + 1e-6)
    axes = [np.arange(-r, r + 1) for r in reach]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = shifts[:, structure.pbc] @ structure.cell[structure.pbc]
    r = structure.positions
    vectors = (r[None, :, None] - r[:, None, None]) + offsets
    return shifts, vectors, np.linalg.norm(vectors, axis=-1)


def reference(structure: Structure, cutoff: float) -> tuple[set[tuple], set[tuple]]:
    """Every (j, i, S) closer than the cutoff, both directions; and those too close to it to tell."""
    shifts, _, distances = images(structure, cutoff)
    real = np.ones(distances.shape, dtype=bool)
    n = len(structure.positions)
    real[np.arange(n), np.arange(n), np.flatnonzero(~shifts.any(axis=1))[0]] = False

    def rows(mask: np.ndarray) -> set[tuple]:
        i, j, s = np.nonzero(mask)
        return set(map(tuple, np.column_stack([j, i, shifts[s]]).tolist()))

    return rows(real & (distances < cutoff)), rows(real & (np.abs(distances - cutoff) < TIE))


def is_right(pairs: Pairs, structure: Structure, cutoff: float, truth: tuple[set, set]) -> bool:
    """Whether a list, less its pairs beyond the cutoff, holds each true pair exactly once."""
    (j, i), shifts = pairs
    if np.any(shifts[:, ~structure.pbc]):
        return False
    vectors = structure.positions[j] - structure.positions[i]
    vectors = vectors + shifts[:, structure.pbc] @ structure.cell[structure.pbc]
    near = np.linalg.norm(vectors, axis=1) < cutoff
    j, i, shifts = j[near], i[near], shifts[near].astype(np.int64)
    listed = np.concatenate([np.column_stack([j, i, shifts]), np.column_stack([i, j, -shifts])])
    found = set(map(tuple, listed.tolist()))
    return len(found) == len(listed) and found ^ truth[0] <= truth[1]


def random_cell(rng: np.random.Generator, cutoff: float) -> np.ndarray:
    """Cell vectors in rows, none of its heights far below a fifth of the cutoff."""
    kind = rng.integers(6)
    size = cutoff * rng.uniform(0.4, 3.0)
    if kind == 0:
        return np.eye(3) * size
    if kind == 1:  # flat or a needle
        return np.diag(cutoff * rng.uniform(0.35, 3.0, 3))
    if kind == 2:  # hexagonal, with exact right angles and equal lengths
        return size * np.array([[1, 0, 0], [-0.5, np.sqrt(0.75), 0], [0, 0, rng.uniform(0.5, 2)]])
    while True:
        cell = np.diag(cutoff * rng.uniform(0.4, 2.0, 3)) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        strong = kind == 3
        cell = cell + cutoff * rng.normal(scale=0.6 if strong else 0.15, size=(3, 3))
        if kind == 4:
            cell = cell[[1, 0, 2]]  # the other handedness
        if 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0).max() > 0.2 * cutoff:
            return cell


def random_structure(rng: np.random.Generator, cutoff: float) -> Structure:
    """One to seven atoms, or some dozens, in a random cell with a random periodicity."""
    cell = random_cell(rng, cutoff)
    pbc = rng.permutation(3) < rng.choice(4, p=[0.1, 0.2, 0.3, 0.4])
    n = rng.integers(1, 8) if rng.random() < 0.85 else rng.choice([20, 40, 70])
    fractional = rng.random((n, 3))
    if rng.random() < 0.15:  # on a lattice: exact halves, faces and corners of the cell
        fractional = np.round(2 * fractional) / 2 + 1e-3 * rng.random((n, 1))
    if rng.random() < 0.4 and n < 8:  # outside
        fractional += rng.integers(-2, 3, (n, 3))
    if n > 7:  # enough atoms for a cell list, in a cell to match
        cell = cell * (2.0 + rng.random())
    positions = fractional @ cell
    if not pbc.all():
        # What stands in the rows of the other directions must not matter: zeros, or anything.
        cell = cell.copy()
        cell[~pbc] *= rng.choice([0.0, 1.0, 1e3])
    return Structure(positions, cell, pbc)


def trajectory(rng: np.random.Generator, cutoff: float, skin: float) -> Iterator[Structure]:
    """Structures that follow on one another as in a simulation."""
    now = random_structure(rng, cutoff)
    speed = rng.choice([0.0, 0.03, 0.1, 0.2]) * (skin + 0.05)
    strain = rng.choice([0.0, 0.003, 0.01, 0.02])
    together = rng.random() < 0.5  # atoms follow the cell, as a barostat moves them
    drift = rng.normal(scale=strain, size=(3, 3))
    for _ in range(rng.integers(1, STEPS + 1)):
        yield now
        positions = now.positions + rng.normal(scale=speed, size=now.positions.shape)
        F = np.eye(3) + drift + rng.normal(scale=0.3 * strain, size=(3, 3))
        now = now.changed(positions @ F if together else positions, now.cell @ F)
        event = rng.random()
        if event < 0.05 and now.pbc.any():  # wrapped back into the cell
            rows = now.cell[now.pbc]
            whole = np.floor(now.positions @ np.linalg.pinv(rows))
            now = now.changed(now.positions - whole @ rows)
        elif event < 0.08:
            now = random_structure(rng, cutoff)
        elif event < 0.10 and len(now.positions) > 1:
            now = now.changed(now.positions[1:])


class Recorder(torch.nn.Module):
    """Stands where a potential stands in a TorchForce and keeps the pairs it is given."""

    edge_index: torch.Tensor
    cell_shifts: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("edge_index", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("cell_shifts", torch.zeros(0, 3, dtype=torch.float64))

    def forward(
        self,
        positions: torch.Tensor,
        atomic_numbers: torch.Tensor,
        edge_index: torch.Tensor,
        cell_shifts: torch.Tensor,
        cell: torch.Tensor,
        batch: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Keep the pairs; neither energy nor forces."""
        self.edge_index, self.cell_shifts = edge_index, cell_shifts
        return {"energy": torch.zeros_like(cell[:, 0, 0]), "forces": torch.zeros_like(positions)}


@cache
def torch_force(num_atoms: int, periodic: bool, cutoff: float, skin: float) -> Any:
    """The scripted module of a TorchForce, with a recorder in the place of its potential."""
    with quiet_torchscript():
        recorder = torch.jit.script(Recorder())
    potential = ExportedPotential(recorder, {"cutoff": cutoff, "species": [1]})
    # Whatever else a TorchForce can do is off.
    options: dict[str, Any] = {field.name: field.type(0) for field in fields(Wrapping)}
    options |= {"length": 1.0, "energy": 1.0, "max_force": math.inf}
    wrapping = Wrapping(**(options | {"periodic": periodic, "skin": skin}))
    return wrap_potential(potential, np.ones(num_atoms, dtype=np.int64), None, wrapping)


def torch_force_pairs(structure: Structure, cutoff: float, skin: float) -> Pairs:
    """The pairs with which a TorchForce evaluates its potential."""
    periodic = bool(structure.pbc.all())
    force = torch_force(len(structure.positions), periodic, cutoff, skin)
    arguments = (structure.positions, structure.cell) if periodic else (structure.positions,)
    force(*map(torch.tensor, arguments))
    return force.potential.edge_index.numpy(), force.potential.cell_shifts.numpy()


def candidates(verlet: VerletList, structure: Structure) -> Iterator[tuple[str, Pairs]]:
    """The lists to be checked."""
    arguments = (structure.positions, structure.cell, structure.pbc)
    yield "vesin from scratch", neighbor_pairs(*arguments, verlet.cutoff)
    edge_index, shifts = verlet.within_cutoff(*arguments)
    yield "list with a skin", (edge_index.numpy(), shifts.numpy())
    # OpenMM has three periodic directions or none.
    if structure.pbc.all() or not structure.pbc.any():
        yield "TorchForce", torch_force_pairs(structure, verlet.cutoff, verlet.skin)


def check(cases: int, seed: int = 0) -> tuple[Counter, Counter]:
    """Compare every list with the reference for this many structures.

    Returns:
        Lists compared, by their name and by properties of the cases; and lists that are wrong.
    """
    rng = np.random.default_rng(seed)
    compared, wrong = Counter(), Counter()
    while compared["structures"] < cases:
        # A handful of values: the TorchScript lists stay for all cases that share them.
        cutoff, skin = rng.choice([1.7, 3.0, 5.0]), rng.choice([0.0, 0.5, 1.0, 1.5])
        verlet = VerletList(cutoff, skin)
        for structure in trajectory(rng, cutoff, skin):
            truth = reference(structure, cutoff)
            compared["structures"] += 1
            compared[f"periodic in {structure.pbc.sum()} directions"] += 1
            compared["pairs"] += len(truth[0]) // 2
            if structure.pbc.any():
                heights = 1.0 / np.linalg.norm(
                    np.linalg.pinv(structure.cell[structure.pbc]), axis=0
                )
                compared["cell thinner than the cutoff"] += int(heights.min() < cutoff)
            for name, pairs in candidates(verlet, structure):
                compared[name] += 1
                if not is_right(pairs, structure, cutoff, truth):
                    wrong[name] += 1
                    print(f"WRONG: {name}, cutoff {cutoff}, skin {skin}: {structure}", flush=True)
        compared["list with a skin, searches"] += verlet.builds
    return compared, wrong


def milliseconds(function: Callable[[], object], repeat: int = 7) -> float:
    """Median CPU time of a call, after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        start = time.process_time()
        function()
        times.append(1e3 * (time.process_time() - start))
    return float(np.median(times[1:]))


def cost(cutoff: float = 5.0, skin: float = 0.5, density: float = 0.1) -> None:
    """Print a table: atoms at the density of water (atoms/Å³), periodic, at random."""
    print(
        "| atoms | pairs | build, ms | reuse, ms | TorchForce build, ms | reuse, ms | memory, MB |"
    )
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    rows = []
    for n in (100, 300, 1000, 3000, 6000, 10_000, 20_000):
        cell, pbc = np.eye(3) * (n / density) ** (1 / 3), np.ones(3, dtype=bool)
        positions = rng.random((n, 3)) @ cell
        verlet = VerletList(cutoff, skin)
        edges = verlet.update(positions, cell, pbc)
        memory = 1e-6 * sum(tensor.numel() * tensor.element_size() for tensor in edges)
        near = verlet.within_cutoff(positions, cell, pbc)[0].shape[1]
        force = torch_force(n, True, cutoff, skin)
        points, box = torch.tensor(positions), torch.tensor(cell)
        turns = count()
        calls: dict[str, Callable[[], object]] = {
            "build": lambda: VerletList(cutoff, skin).within_cutoff(positions, cell, pbc),  # noqa: B023
            "reuse": lambda: verlet.within_cutoff(positions, cell, pbc),  # noqa: B023
            # All atoms there and back by the skin: too far for a list to be kept.
            "scripted build": lambda: force(points + skin * (next(turns) % 2), box),  # noqa: B023
            "scripted reuse": lambda: force(points, box),  # noqa: B023
        }
        times = [milliseconds(call) for call in calls.values()]
        rows.append([n, *times, memory])
        columns = [str(n), str(near), *(f"{value:.2f}" for value in (*times, memory))]
        print("|", " | ".join(columns), "|", flush=True)
    table = np.log(np.array(rows)[2:])
    for name, column in zip([*calls, "memory"], table.T[1:], strict=True):
        exponent = np.polyfit(table[:, 0], column, 1)[0]
        print(f"{name}: atoms to the power {exponent:.2f} (from 1000 atoms)")


def main() -> None:
    """Check or measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="structures to check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true", help="print the table of costs instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cost:
        cost()
        return
    start = time.perf_counter()
    compared, wrong = check(options.cases, options.seed)
    for name, number in sorted(compared.items()):
        print(f"{name:<32}{number:>12,}")
    print(f"wrong lists: {sum(wrong.values())} ({time.perf_counter() - start:.0f} s)")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
