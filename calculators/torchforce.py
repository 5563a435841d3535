"""The TorchScript side of OpenMM's TorchForce: the module that the plugin runs at every step.

:func:`wrap_potential` puts an exported potential into a scripted module of the signature that the
plugin wants, ``positions[, box][, scale] -> energy, forces`` in the engine's units. The module holds
what stays the same (atomic numbers, the pairs of a small molecule), searches neighbours with vesin
where it must, casts what it gets (float64 on Reference and CPU, float32 on CUDA in single and mixed
precision), and refuses to hand back forces that are not finite or beyond any in a molecule. A compiled
potential is called through an operator (:mod:`calculators.torchcompiled`).
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from calculators.evaluator import STATIC_ATOMS
from calculators.torchplugin import import_vesin
from calculators.torchregion import Region, Wrapping
from forcefield.errors import ConfigError
from forcefield.export import ExportedPotential, quiet_torchscript
from forcefield.neighbors import all_pairs

GRAPH_ATOMS = 200
"""Most atoms with ``cuda_graphs``: the number of all pairs grows with their square."""


FEW_PAIRS = 60
"""Pairs up to which it takes longer to look for the close ones than to evaluate them all."""


class AllPairs(Region):
    """Atoms outside a box, few enough to look at every pair.

    On a CPU the pairs within the cutoff are edges; on a GPU, and in a box, all of them are, so that shapes
    stay the same. With ``cuda_graphs`` nothing here depends on data or waits for the device, so that the
    plugin can record a step once and replay it. An exception cannot be raised from a recording: energy
    and the force on the atom become NaN instead, which the same step carries into its position. Results
    are written to tensors of the module: the plugin records two steps, one for energies with forces and
    one for energies alone, and keeps only what the later one returned, whichever it replays. In a box the
    nearest image of each pair counts, which is every image within the cutoff as long as the box is two
    cutoffs wide; in a smaller one everything becomes NaN.
    """

    edge_index: Tensor
    no_shifts: Tensor
    last_energy: Tensor
    last_forces: Tensor
    graphs: Final[bool]

    def __init__(
        self,
        potential: ExportedPotential,
        numbers: np.ndarray,
        particles: np.ndarray | None,
        wrapping: Wrapping,
    ) -> None:
        super().__init__(potential, numbers, particles, wrapping)
        self.graphs = wrapping.cuda_graphs
        pairs = all_pairs(len(numbers)).clone()
        self.few_pairs = FEW_PAIRS
        self.register_buffer("edge_index", pairs)
        self.register_buffer("no_shifts", torch.zeros(pairs.shape[1], 3, dtype=torch.float64))
        self.register_buffer("last_energy", torch.zeros((), dtype=torch.float64))
        self.register_buffer("last_forces", torch.zeros(0, 3))

    def forward(
        self, positions: Tensor, box: Tensor | None = None, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Energy and forces, as :func:`wrap_potential` says."""
        # The plugin asks for a gradient even from a module that gives forces, and TorchScript then
        # prepares to differentiate all that follows, which doubles the time of a small molecule.
        positions.requires_grad_(False)
        # The plugin hands over what there is: without a box the scale comes second.
        if not self.periodic:
            scale = box
            box = None
        if self.switched_off(scale):
            return self.nothing(positions)
        misfit = self.misfit(positions)
        if len(misfit) > 0:
            raise RuntimeError(misfit)
        points = self.points(positions)
        cell = self.box(box)
        shifts = self.no_shifts
        edge_index = self.edge_index
        if box is not None:
            shifts = self.nearest_images(points, cell)
        elif points.is_cpu and edge_index.size(1) > self.few_pairs:
            damage = self.damage(points)
            if len(damage) > 0:  # A pair at infinity is not within a cutoff.
                raise RuntimeError(damage)
            near = self.near(points)
            edge_index = edge_index.index_select(1, near)
            shifts = shifts.index_select(0, near)
        energy, forces, problem = self.evaluate(points, edge_index, shifts, cell)
        if len(problem) > 0:
            raise RuntimeError(problem)
        if self.graphs:
            limit = self.max_force * self.max_force
            bad = torch.logical_not((forces * forces).sum(1) < limit)
            energy = energy.masked_fill(bad.any(), float("nan"))
            forces = forces.masked_fill(bad.unsqueeze(1), float("nan"))
            return self.in_place(self.results(energy, forces, positions, scale))
        verdict = self.verdict(energy, forces, points)
        if verdict == "trial":
            return self.turned_down(positions)
        if len(verdict) > 0:
            raise RuntimeError(verdict)
        return self.results(energy, forces, positions, scale)

    def in_place(self, results: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same results, in the same tensors at every call."""
        energy, forces = results
        if self.last_forces.size(0) != forces.size(0) or self.last_forces.dtype != forces.dtype:
            # At the first call of a warm-up, long before a step is recorded.
            self.last_energy = torch.zeros_like(energy)
            self.last_forces = torch.zeros_like(forces)
        self.last_energy.copy_(energy)
        self.last_forces.copy_(forces)
        return self.last_energy, self.last_forces

    def near(self, points: Tensor) -> Tensor:
        """Numbers of the pairs that are closer than the cutoff."""
        vectors = points.index_select(0, self.edge_index[0]) - points.index_select(
            0, self.edge_index[1]
        )
        return (vectors.square().sum(1) < self.cutoff * self.cutoff).nonzero().squeeze(1)

    def nearest_images(self, points: Tensor, cell: Tensor) -> Tensor:
        """Cell shifts (e, 3) that make each pair's vector the shortest, NaN in too small a box."""
        # Not linalg.inv, which waits for the device.
        normals = torch.linalg.cross(cell.roll(-1, 0), cell.roll(-2, 0), dim=1)
        volume = (cell[0] * normals[0]).sum()
        vectors = points.index_select(0, self.edge_index[0]) - points.index_select(
            0, self.edge_index[1]
        )
        shifts = -torch.round(vectors @ normals.transpose(0, 1) / volume)
        widths = volume.abs() / torch.linalg.vector_norm(normals, dim=1)
        return shifts.masked_fill(widths.min() < 2.0 * self.cutoff, float("nan"))


class NeighborList(Region):
    """Any number of atoms, with or without a periodic box: a vesin neighbour list with a skin.

    Another box gets another list. vesin by itself would keep the old one while the box vectors change
    by less than about half the skin; but a pair that lies several boxes apart (unwrapped atoms, a box
    thinner than the cutoff) moves by several times that.
    """

    pbc: Tensor
    last_cell: Tensor
    offset: Tensor

    def __init__(
        self,
        potential: ExportedPotential,
        numbers: np.ndarray,
        particles: np.ndarray | None,
        wrapping: Wrapping,
    ) -> None:
        super().__init__(potential, numbers, particles, wrapping)
        self.neighbors = torch.classes.vesin._NeighborList(
            cutoff=potential.cutoff,
            full_list=False,
            sorted=True,
            algorithm="auto",
            skin=wrapping.skin,
            n_threads=1,
        )
        self.skin = wrapping.skin
        self.register_buffer("pbc", torch.tensor([wrapping.periodic] * 3))
        self.register_buffer("last_cell", torch.zeros(3, 3, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(3, dtype=torch.float64))

    def forward(
        self, positions: Tensor, box: Tensor | None = None, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Energy and forces, as :func:`wrap_potential` says."""
        positions.requires_grad_(False)  # as in AllPairs
        if not self.periodic:
            scale = box
            box = None
        if self.switched_off(scale):
            return self.nothing(positions)
        misfit = self.misfit(positions)
        if len(misfit) > 0:
            raise RuntimeError(misfit)
        points = self.points(positions)
        cell = self.box(box)
        damage = self.damage(points)
        if len(damage) > 0:  # A search among NaN may not come back.
            raise RuntimeError(damage)
        if not torch.equal(cell, self.last_cell):
            if not bool(torch.isfinite(cell).all()):  # A search in such a box ends the process.
                raise RuntimeError("InvalidStructureError: the box vectors are not finite")
            self.last_cell.copy_(cell)
            # All atoms moved by the skin, or back: no pair changes, and vesin searches anew.
            self.offset.copy_(self.skin - self.offset)
        # On the CPU wherever the model runs: a search is a small part of a step of a large system.
        moved = (points + self.offset).cpu()
        pairs = self.neighbors.compute(moved, cell.cpu(), self.pbc.cpu(), "ijS", True)
        # In a pair (i, j, S) of vesin atom j is moved by S @ cell; an edge names j first.
        edge_index = torch.stack([pairs[1], pairs[0]]).to(points.device, torch.int64)
        cell_shifts = pairs[2].to(points.device, torch.float64)
        energy, forces, problem = self.evaluate(points, edge_index, cell_shifts, cell)
        if len(problem) > 0:
            raise RuntimeError(problem)
        verdict = self.verdict(energy, forces, points)
        if verdict == "trial":
            return self.turned_down(positions)
        if len(verdict) > 0:
            raise RuntimeError(verdict)
        return self.results(energy, forces, positions, scale)


def wrap_potential(
    potential: ExportedPotential,
    numbers: np.ndarray,
    particles: np.ndarray | None,
    wrapping: Wrapping,
) -> torch.jit.ScriptModule:
    """Script the module that TorchForce runs.

    Args:
        potential: The exported potential; a compiled one runs compiled.
        numbers: Atomic numbers, (n,).
        particles: Indices of the atoms among the System's particles, (n,); None for all, in order.
        wrapping: Units and options.

    Returns:
        positions (particles, 3)[, box (3, 3)][, scale ()] -> energy (), float64, and forces
        (particles, 3) in the precision of the positions.

    Raises:
        EngineError: The system needs neighbour lists and vesin-torch does not work with this torch.
        ConfigError: CUDA graphs are asked for with too many atoms, or together with a scale.
    """
    module: torch.nn.Module
    if wrapping.cuda_graphs:
        _check_graphs(len(numbers), wrapping)
    if wrapping.cuda_graphs or (not wrapping.periodic and len(numbers) <= STATIC_ATOMS):
        module = AllPairs(potential, numbers, particles, wrapping)
    else:
        import_vesin()
        module = NeighborList(potential, numbers, particles, wrapping)
    with quiet_torchscript():
        return torch.jit.script(module.to(potential.device).eval())


def _check_graphs(atoms: int, wrapping: Wrapping) -> None:
    if atoms > GRAPH_ATOMS:
        raise ConfigError(
            f"cuda_graphs evaluates all pairs and is meant for up to {GRAPH_ATOMS} atoms, "
            f"found {atoms}; leave it out"
        )
    if wrapping.scaled:
        raise ConfigError(
            "cuda_graphs would keep the value that the global parameter has in the first step; "
            "leave it out where a parameter scales the potential (interpolate, scale_parameter)"
        )
