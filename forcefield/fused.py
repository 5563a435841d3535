"""HEGNN for small systems on a GPU: a step in few kernels, written in Triton.

A step of one molecule is hardly any arithmetic. What takes time is to start kernels and to wait for
memory between them, and torch's compiler makes two hundred of the step. Here it is four for each layer
and five more:

* ``neighbours`` sorts the pairs within the cutoff by atoms, into tiles of :data:`TILE` neighbours of one
  atom; a pair stands in the tiles of both of its atoms. An atom with many neighbours has several tiles.
* ``initial`` and ``messages`` have a program for each tile, which sums over its neighbours. Messages are
  symmetric: to compute a pair from both ends takes twice the arithmetic, and no atomic additions, so
  results are the same bit by bit at every call.
* ``begin``, ``update`` and ``finish`` have a program for each atom, which adds up its tiles and does what
  happens there, up to what the atom brings into its next pairs. ``finish`` turns around at the energy.
* The derivatives go the same way back. A program gets the gradients of the sums of both ends of its
  pairs, so each pair's gradient is whole, and keeps what belongs to its own atom.
* ``collect`` adds up forces, energies and virials.

Launches depend on the number of atoms, pairs and structures only: a step can be recorded in a CUDA graph.
All is in float32, products of matrices, too: on tensor cores so few rows would not be faster.

Shapes: atoms ``n``, pairs ``e``, structures ``b``.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from forcefield.export import ExportedPotential, rebuild
from forcefield.fused_weights import FusedWeights
from forcefield.potential import Potential

TILE = 4
"""Neighbours of one tile."""

LARGEST = 1 << 18
"""Most atoms times pairs: every program of ``neighbours`` looks at all of them."""

MOST_ATOMS = 128
"""Most atoms: counters of all of them are in every program of ``neighbours``."""

WARPS = {"neighbours": 4, "initial": 4, "messages": 8, "atoms": 8, "collect": 1}
"""Warps of a program, by kind of kernel."""


def supports(exported: ExportedPotential) -> bool:
    """Whether there are kernels for a potential: HEGNN in single precision with round sizes."""
    architecture = exported.metadata["architecture"]
    if architecture["name"] != "hegnn" or exported.dtype != torch.float32:
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    return (
        architecture["features"] in (16, 32, 64)
        and architecture["channels"] in (16, 32)
        and 1 <= architecture["lmax"] <= 4
        and architecture["radial"] <= 32
        and not architecture.get("tensor_product")
    )


def small_enough(atoms: int, pairs: int) -> bool:
    """Whether a system is one of those that the kernels are for."""
    return atoms <= MOST_ATOMS and atoms * pairs <= LARGEST


class FusedPotential:
    """A potential with HEGNN in few kernels.

    Args:
        potential: One that :func:`supports` accepts, on a CUDA device.
        tile: Neighbours of one tile, 4, 8 or 16.

    Raises:
        Exception: Whatever Triton raises where it cannot compile: kernels are compiled here.
    """

    def __init__(self, potential: ExportedPotential | Potential, tile: int = TILE) -> None:
        from forcefield import fused_atoms, fused_geometry, fused_pairs

        self.geometry, self.pairs, self.atoms = fused_geometry, fused_pairs, fused_atoms
        if isinstance(potential, ExportedPotential):
            potential = rebuild(potential)
        network: Any = potential.representation
        readout = potential.readout
        self.tile = tile
        self.features, self.channels, self.lmax = network.features, network.channels, network.lmax
        self.rows = 16 if self.lmax < 4 else 32
        radial = len(network.radial_basis.wave_numbers)
        self.radial = 16 if radial <= 16 else 32
        self.cutoff, self.scale = float(network.cutoff), float(network.scale)
        self.radial_scale = float(network.radial_basis.scale)
        sizes = {"C": self.channels, "L": self.lmax, "ROWS": self.rows}
        self.sizes_atoms = {"F": self.features, **sizes}
        self.sizes_geometry = {"T": tile, "K": self.radial, **sizes}
        self.sizes_messages = {"F": self.features, **self.sizes_geometry}

        self.species_index = potential.species_index
        self.embedding = network.embedding.weight.detach().contiguous()
        self.energy_scale = readout.scale.detach().reshape(-1).contiguous()
        self.references = readout.reference_energies
        wave_numbers = network.radial_basis.wave_numbers
        self.wave_numbers = torch.nn.functional.pad(wave_numbers, (0, self.radial - radial))
        self.weights = FusedWeights(network, readout, self.radial)
        # What the kernels themselves give for lone atoms is subtracted: their energies are exact.
        self.isolated = torch.zeros_like(self.energy_scale)
        self.isolated = self._of_lone_atoms(potential)

    def _of_lone_atoms(self, potential: Potential) -> Tensor:
        device = self.energy_scale.device
        numbers = torch.tensor(potential.species, device=device)
        n = len(numbers)
        with torch.cuda.device_of(numbers):
            *_, outputs = self._launch(
                torch.zeros((n, 3), dtype=torch.float64, device=device),
                numbers,
                torch.zeros((2, 0), dtype=torch.int64, device=device),
                torch.zeros((0, 3), dtype=torch.float64, device=device),
                torch.zeros((1, 3, 3), dtype=torch.float64, device=device),
                torch.zeros(n, dtype=torch.int64, device=device),
            )
        return outputs[:n].clone()

    def __call__(
        self,
        positions: Tensor,
        atomic_numbers: Tensor,
        edge_index: Tensor,
        cell_shifts: Tensor,
        cell: Tensor,
        batch: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Evaluate structures.

        Args:
            positions: (n, 3), Å, float64 or float32.
            atomic_numbers: (n,), int64. The energy of an unknown element is not a number.
            edge_index: Each pair once, (2, e), int64; pairs beyond the cutoff count for nothing.
            cell_shifts: (e, 3).
            cell: (b, 3, 3), Å.
            batch: Structure of each atom, (n,), int64.

        Returns:
            Energies of the structures (b,) and of the atoms (n,), float64, eV; forces (n, 3), eV/Å, and
            virials (b, 3, 3), eV, in the type of the positions.
        """
        with torch.cuda.device_of(positions):
            energy, energies, forces, virial, _ = self._launch(
                positions.detach().contiguous(),
                atomic_numbers.contiguous(),
                edge_index.contiguous(),
                cell_shifts.contiguous(),
                cell.detach().contiguous(),
                batch.contiguous(),
            )
        return energy, energies, forces, virial

    def _launch(
        self,
        positions: Tensor,
        numbers: Tensor,
        edges: Tensor,
        shifts: Tensor,
        cell: Tensor,
        batch: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The results of a call, and what the readout gave for each atom."""
        n, e, b = positions.shape[0], edges.shape[1], cell.shape[0]
        energies = torch.empty(n, dtype=torch.float64, device=positions.device)
        energy = torch.empty(b, dtype=torch.float64, device=positions.device)
        forces = torch.empty_like(positions)
        virial = positions.new_empty((b, 3, 3))

        layers = len(self.weights.messages)
        f, c, t, rows, k = self.features, self.channels, self.tile, self.rows, self.radial
        tiles = n + 2 * e // t  # the most that sorting can need: every atom may have one unfilled
        steerable, pairs = n * rows * c, tiles * t
        each = [
            *(n * f, steerable, n * f, steerable, steerable),  # h, x, atoms, projected, carried
            *(3 * pairs * f, 2 * self.lmax * pairs * c),  # hidden, gates
            *(steerable, n * f, n * 4 * c),  # x_middle, ups, channel_gates
        ]
        shared = [
            *(tiles, pairs, n, n),  # tile_atom, others, first_tile, number_of_tiles
            *(3 * pairs, pairs * k, pairs * rows),  # vectors, radial, harmonics
            *(tiles * f, tiles * rows * c, tiles * rows * c),  # sums, or gradients, of tiles
            *(n * f, steerable, n * f, steerable),  # gradients: h, x, collected, sent
            *(layers * pairs * rows, layers * pairs * k),  # gradients: harmonics, radial
            *(16 * tiles, n),  # parts of forces, outputs
        ]
        # Where 16 bytes begin: loads may be wide.
        lengths = [-(-length // 4) * 4 for length in shared + layers * each]
        space = torch.empty(sum(lengths), dtype=torch.float32, device=positions.device)
        parts = space.split_with_sizes(lengths)
        tile_atom, others, first, number = (part.view(torch.int32) for part in parts[:4])
        vectors, radial, harmonics = parts[4:7]
        tile_f, tile_x, tile_v = parts[7:10]
        of_h, of_x, of_collected, of_sent = parts[10:14]
        of_harmonics, of_radial, of_positions, outputs = parts[14:18]
        kept = [parts[18 + i : 18 + i + len(each)] for i in range(0, layers * len(each), len(each))]

        chunk, everyone = 32 * WARPS["neighbours"], max(16, 1 << (n - 1).bit_length())
        warps, warps_atoms = WARPS["messages"], WARPS["atoms"]
        self.geometry.neighbours[(n,)](
            positions, edges, shifts, cell, batch, tile_atom, others, first, number, vectors,
            n, e, tiles, self.cutoff,
            ATOMS=everyone, CHUNK=chunk, T=t, num_warps=WARPS["neighbours"],
        )  # fmt: skip
        self.geometry.initial[(tiles,)](
            tile_atom, others, vectors, numbers, self.species_index, self.weights.initial,
            self.wave_numbers, radial, harmonics, tile_x, self.cutoff, self.radial_scale,
            **self.sizes_geometry, num_warps=WARPS["initial"],
        )  # fmt: skip
        self.atoms.begin[(n,)](
            numbers, self.species_index, self.embedding, self.weights.begin, first, number, tile_x,
            *kept[0][:5], self.scale, **self.sizes_atoms, num_warps=warps_atoms,
        )  # fmt: skip
        for i in range(layers):
            h, x, atoms, projected, carried, hidden, gates, middle, ups, channel_gates = kept[i]
            self.pairs.messages[(tiles,)](
                tile_atom, others, radial, harmonics, atoms, projected, carried,
                self.weights.messages[i], hidden, gates, tile_f, tile_x, tiles,
                **self.sizes_messages, num_warps=warps,
            )  # fmt: skip
            if i < layers - 1:
                h_out, x_out, *brought = kept[i + 1][:5]
                self.atoms.update[(n,)](
                    h, x, self.weights.updates[i], first, number, tile_f, tile_x,
                    h_out, x_out, middle, ups, channel_gates, *brought, self.scale,
                    **self.sizes_atoms, num_warps=warps_atoms,
                )  # fmt: skip
            else:
                self.atoms.finish[(n,)](
                    h, x, self.weights.updates[i], self.weights.updates_back[i],
                    first, number, tile_f, tile_x, numbers, self.species_index, self.weights.readout,
                    self.energy_scale, self.isolated, self.references, energies, outputs,
                    of_h, of_x, of_collected, of_sent, self.scale,
                    **self.sizes_atoms, num_warps=warps_atoms,
                )  # fmt: skip
        for i in reversed(range(layers)):
            _, _, _, projected, carried, hidden, gates = kept[i][:7]
            self.pairs.message_gradients[(tiles,)](
                tile_atom, others, harmonics, projected, carried, self.weights.messages_back[i],
                hidden, gates, of_collected, of_sent, tile_f, tile_x, tile_v,
                of_harmonics[i * pairs * rows :], of_radial[i * pairs * k :], tiles,
                **self.sizes_messages, num_warps=warps,
            )  # fmt: skip
            if i:
                middle, ups, channel_gates = kept[i - 1][7:]
                self.atoms.update_gradients[(n,)](
                    self.weights.updates[i - 1], self.weights.updates_back[i - 1], first, number,
                    middle, ups, channel_gates, tile_f, tile_x, tile_v, of_h, of_x,
                    of_h, of_x, of_collected, of_sent, self.scale,
                    **self.sizes_atoms, num_warps=warps_atoms,
                )  # fmt: skip
            else:
                self.atoms.begin_gradients[(n,)](
                    self.weights.begin_back, first, number, tile_x, tile_v,
                    of_x, of_sent, self.scale, **self.sizes_atoms, num_warps=warps_atoms,
                )  # fmt: skip
        self.geometry.pair_forces[(tiles,)](
            tile_atom, others, vectors, numbers, self.species_index, self.weights.initial,
            self.weights.initial_back, self.wave_numbers, radial, harmonics, of_sent,
            of_harmonics, of_radial, of_positions, tiles, self.cutoff, self.radial_scale,
            **self.sizes_geometry, LAYERS=layers, num_warps=WARPS["initial"],
        )  # fmt: skip
        self.geometry.collect[(n + b,)](
            first, number, batch, energies, of_positions, energy, forces, virial, n,
            ATOMS=everyone, num_warps=WARPS["collect"],
        )  # fmt: skip
        return energy, energies, forces, virial, outputs
