"""What pairs of atoms say in HEGNN, apart from how it is summed.

A stage is the part of the network between two sums over the pairs of an atom: the directions of the
neighbours at the start, and the messages of each layer.

Shapes: atoms ``n``, pairs ``e``, components ``m``, channels ``c``.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from forcefield.hegnn import HEGNN, HEGNNLayer


class Stage(nn.Module):
    """What pairs say to their atoms, as a function of the vectors and of features of the atoms.

    Attributes:
        differentiate_nodes: Whether the features of the atoms depend on the positions.
        node_shapes: Shapes of the features of one atom.
        sum_shapes: Shapes of the sums for one atom.
    """

    differentiate_nodes: bool
    node_shapes: list[tuple[int, ...]]
    sum_shapes: list[tuple[int, ...]]

    def messages(
        self, vectors: Tensor, nodes_i: Sequence[Tensor], nodes_j: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What is added to the sums of atoms i and of atoms j, from the features of either."""
        raise NotImplementedError


class InitialStage(Stage):
    """Directions of the neighbours: from A_Z (n, L c) to the first steerable features (n, m, c)."""

    differentiate_nodes = False

    def __init__(self, network: HEGNN) -> None:
        super().__init__()
        self.network = network
        self.node_shapes = [(network.lmax * network.channels,)]
        self.sum_shapes = [_steerable(network)]

    def messages(
        self, vectors: Tensor, nodes_i: Sequence[Tensor], nodes_j: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See :class:`Stage`."""
        towards_i, towards_j = self.network.initial(
            nodes_i[0], nodes_j[0], *self.network.geometry(vectors)
        )
        return [towards_i], [towards_j]


class LayerStage(Stage):
    """Messages of a layer: from what ``before`` gives to the sums that ``after`` takes."""

    differentiate_nodes = True
    parity: Tensor

    def __init__(self, network: HEGNN, layer: HEGNNLayer) -> None:
        super().__init__()
        self.radial_basis, self.envelope = network.radial_basis, network.envelope
        self.harmonics = network.harmonics
        self.layer = layer
        self.node_shapes = [(network.features,), _steerable(network), _steerable(network)]
        self.sum_shapes = [(network.features,), _steerable(network)]
        self.register_buffer("parity", network.parity)

    def messages(
        self, vectors: Tensor, nodes_i: Sequence[Tensor], nodes_j: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See :class:`Stage`."""
        (atoms_i, projected_i, carried_i), (atoms_j, projected_j, carried_j) = nodes_i, nodes_j
        geometry = HEGNN.geometry(self, vectors)  # type: ignore[arg-type]
        message, towards_i, towards_j = self.layer.messages(
            atoms_i + atoms_j,
            projected_i,
            projected_j,
            carried_i,
            carried_j,
            *geometry,
            self.parity,
        )
        return [message, towards_i], [message, towards_j]


def _steerable(network: HEGNN) -> tuple[int, int]:
    return (network.lmax + 1) ** 2 - 1, network.channels
