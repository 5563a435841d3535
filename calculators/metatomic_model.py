"""The TorchScript side of the export to metatomic: a potential behind metatomic's interface.

An engine hands over systems with the neighbour lists that were asked for and gets energies that it
differentiates itself: with respect to positions for forces, to a strain for the stress. Lengths are
in Å and energies in eV here; metatomic converts from and to the engine's units.

Importing this module needs metatomic-torch; :mod:`calculators.metatomic` does it when it exports.

Shapes: atoms ``n`` of all systems, edges ``e``, systems ``b``, features ``f``.
"""

from typing import Dict, List, NamedTuple, Optional  # noqa: UP035

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, NeighborListOptions, System
from torch import Tensor

from forcefield.potential import Potential


class MetatomicPotential(torch.nn.Module):
    """Energies, features and estimated errors of a list of systems, by one call of the network.

    The energy is what the last layer's inputs give with the last layer's weights
    (:meth:`forcefield.readout.EnergyReadout.last_layer`), so its error comes at no cost.

    Args:
        potential: A :class:`~forcefield.potential.Potential`, or the module of an exported one.
        cutoff: Å.
    """

    last_weights: Tensor

    def __init__(self, potential: Potential, cutoff: float) -> None:
        super().__init__()
        self.potential: Potential = potential
        last = getattr(potential.readout.network, "2")
        self.register_buffer("last_weights", last.weight.detach().t().clone())
        # Strict: a pair beyond the cutoff counts for nothing and costs as much as any other.
        self.neighbors = NeighborListOptions(cutoff=cutoff, full_list=False, strict=True)

    # metatomic compares these annotations with its own, which are in the old style.
    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        """Each pair closer than the cutoff, once."""
        return [self.neighbors]

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels],  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        """See ``metatomic.torch.ModelInterface``.

        Args:
            systems: With the neighbour lists of :meth:`requested_neighbor_lists`.
            outputs: Any of ``energy``, ``feature``, ``energy_uncertainty``, for systems or for atoms.
            selected_atoms: The atoms that count, all of them if None. The others are neighbours only:
                ghosts of a domain decomposition.
        """
        batch = _join(systems, self.neighbors)
        b = len(systems)
        vectors = batch.vectors.to(self.potential.readout.scale.dtype)
        species = self.potential.species_index.index_select(0, batch.atomic_numbers)
        if selected_atoms is None:
            rows = torch.arange(species.shape[0], device=species.device)
            samples = Labels(
                ["system", "atom"], torch.stack([batch.system, batch.atom], dim=1).to(torch.int32)
            )
        else:
            chosen = selected_atoms.values.to(torch.int64)
            rows = batch.first_atom.index_select(0, chosen[:, 0]) + chosen[:, 1]
            samples = selected_atoms
        system = batch.system.index_select(0, rows)

        result: Dict[str, TensorMap] = {}  # noqa: UP006
        last_layer = vectors
        if "energy" in outputs or "energy_uncertainty" in outputs:
            last_layer = self.potential.last_layer(vectors, batch.atomic_numbers, batch.edge_index)
            last_layer = last_layer.index_select(0, rows)
        for name, output in outputs.items():
            if name == "energy":
                reference = self.potential.readout.reference_energies.index_select(0, species)
                values = (last_layer @ self.last_weights).to(torch.float64)
                values = values + reference.index_select(0, rows).unsqueeze(1)
            elif name == "feature":
                features, _ = self.potential.representation(species, batch.edge_index, vectors)
                values = features.index_select(0, rows).to(torch.float64)
            else:
                values = last_layer.detach().to(torch.float64)
            per_atom = output.sample_kind == "atom"
            if not per_atom:
                none = torch.zeros(b, values.shape[1], dtype=values.dtype, device=values.device)
                values = none.index_add(0, system, values)
            if name == "energy_uncertainty":
                spread = values @ self.potential.posterior.factor.to(torch.float64)
                scale = self.potential.posterior.scales[0]
                values = (scale * spread.square().sum(1).sqrt()).unsqueeze(1)
            if per_atom:
                result[name] = _tensor_map(values, samples, name)
            else:
                every = torch.arange(b, dtype=torch.int32, device=values.device).unsqueeze(1)
                result[name] = _tensor_map(values, Labels(["system"], every), name)
        return result


class _Batch(NamedTuple):
    """Systems joined: ``system`` and ``atom`` count the atoms (n,), ``first_atom`` is (b,)."""

    atomic_numbers: Tensor
    system: Tensor
    atom: Tensor
    first_atom: Tensor
    edge_index: Tensor
    vectors: Tensor


def _join(systems: List[System], neighbors: NeighborListOptions) -> _Batch:  # noqa: UP006
    numbers: List[Tensor] = []  # noqa: UP006
    system: List[Tensor] = []  # noqa: UP006
    atom: List[Tensor] = []  # noqa: UP006
    edges: List[Tensor] = []  # noqa: UP006
    vectors: List[Tensor] = []  # noqa: UP006
    first_atom: List[int] = []  # noqa: UP006
    n = 0
    for index, one in enumerate(systems):
        pairs = one.get_neighbor_list(neighbors)
        first_atom.append(n)
        numbers.append(one.types.to(torch.int64))
        system.append(torch.full_like(numbers[index], index))
        atom.append(torch.arange(len(one), device=one.types.device))
        # From the first to the second atom: the second is the sender j of an edge.
        i = pairs.samples.column("first_atom").to(torch.int64)
        j = pairs.samples.column("second_atom").to(torch.int64)
        edges.append(torch.stack([j, i]) + n)
        vectors.append(pairs.values.squeeze(2))
        n += len(one)
    return _Batch(
        atomic_numbers=torch.cat(numbers),
        system=torch.cat(system),
        atom=torch.cat(atom),
        first_atom=torch.tensor(first_atom, dtype=torch.int64, device=numbers[0].device),
        edge_index=torch.cat(edges, dim=1),
        vectors=torch.cat(vectors),
    )


def _tensor_map(values: Tensor, samples: Labels, name: str) -> TensorMap:
    """One block of numbers, (samples, properties), in metatomic's packing."""
    # An error of an energy is filed under the property "energy".
    label = name.replace("_uncertainty", "")
    columns = torch.arange(values.shape[1], dtype=torch.int32, device=values.device).unsqueeze(1)
    block = TensorBlock(
        values=values,
        samples=samples,
        components=torch.jit.annotate(List[Labels], []),  # noqa: UP006
        properties=Labels([label], columns),
    )
    return TensorMap(Labels(["_"], torch.zeros_like(columns[:1])), [block])
