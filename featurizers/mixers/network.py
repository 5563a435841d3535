"""The network around every mixer, and how one is built by name.

Shapes: frames ``b``, tokens ``t``, channels ``c`` of scalars and ``cv`` of vectors.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from featurizers.mixers.attention import EquivariantAttention
from featurizers.mixers.deepsets import DeepSets, LinearExponential, LinearPower
from featurizers.mixers.embedding import Embedding, Standardizer
from featurizers.mixers.gamma import GammaBlock
from featurizers.mixers.pooling import Flatten, MeanPooling
from featurizers.mixers.transformer import TransformerBlock
from forcefield.errors import ConfigError

MIXERS: dict[str, tuple[str, ...]] = {
    "mlp": ("chiral",),
    "pooling": ("chiral", "token_identity"),
    "deepsets-lp": ("chiral", "token_identity", "powers"),
    "deepsets-le": ("chiral", "token_identity"),
    "transformer": ("chiral", "token_identity", "heads"),
    "attention": ("chiral", "token_identity", "heads", "sphere", "sphere_order"),
    "gamma": ("chiral", "token_identity", "cutoff", "routing"),
}
"""Names of the mixers, with the options of each."""


@dataclass(frozen=True)
class MixerOptions:
    """Options of :func:`build_network`; :data:`MIXERS` says which mixer has which.

    Attributes:
        chiral: Whether triple products of vectors are among the invariants. The scalars of features
            are the same for a structure and its mirror image, so only these tell the two gauche forms
            of an achiral molecule apart. Without them the network is invariant under reflections.
        token_identity: Whether tokens have parameters and statistics of their own. Without them
            permuted tokens give the same result.
        powers: N of the LP embedding.
        heads: Of attention; they divide the width (and its quarter, for "attention").
        sphere: Whether vector channels pass a nonlinearity on the sphere, after which outputs are
            invariant only up to the error of its quadrature.
        sphere_order: Order n of the quadrature, which has 2 n² points.
        cutoff: Of the contacts of "gamma", Å.
        routing: Rounds of routing by agreement of "gamma", at least 2.
    """

    chiral: bool = True
    token_identity: bool = True
    powers: int = 4
    heads: int = 4
    sphere: bool = False
    sphere_order: int = 4
    cutoff: float = 8.0
    routing: int = 2

    def __post_init__(self) -> None:
        for name, least in (("powers", 1), ("heads", 1), ("sphere_order", 2), ("routing", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} starts at {least}, found {getattr(self, name)}")
        if not self.cutoff > 0:
            raise ConfigError(f"cutoff is a length in Å, found {self.cutoff}")


class MixerNetwork(nn.Module):
    """Features of tokens to slow coordinates: standardise, embed, mix, pool, and a perceptron.

    Args:
        standardizer: Means and spreads of the features.
        embedding: To the width of the blocks; None to leave the features as they are.
        blocks: They mix the tokens.
        pooling: From tokens to invariants of the frame, ``pooling.size`` of them.
        head: From invariants to outputs.
    """

    def __init__(
        self,
        standardizer: Standardizer,
        embedding: Embedding | None,
        blocks: list[nn.Module],
        pooling: Flatten | MeanPooling | DeepSets,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.standardizer = standardizer
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.pooling = pooling
        self.head = head

    def standardize(self, scalars: Tensor | np.ndarray, vectors: Tensor | np.ndarray) -> None:
        """Set the means and spreads of the features, once before training.

        Args:
            scalars: Training data (f, t, c).
            vectors: (f, t, 3, cv).

        Raises:
            DataError: There are no frames, or a feature is not finite.
        """
        self.standardizer.fit(scalars, vectors)

    def tokens(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (b, t, w) and vectors (b, t, 3, v) of the tokens behind the last block."""
        scalars, vectors = self.standardizer(scalars, vectors)
        if self.embedding is not None:
            scalars, vectors = self.embedding(scalars, vectors)
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors, positions)
        return scalars, vectors

    def forward(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> Tensor:
        """Compute the coordinates of frames.

        Args:
            scalars: (b, t, c).
            vectors: (b, t, 3, cv).
            positions: (b, t, 3), Å; only "attention" and "gamma" look at them.

        Returns:
            (b, outputs), unchanged by rotations and translations of a frame.
        """
        return self.head(self.pooling(*self.tokens(scalars, vectors, positions)))


def build_network(
    name: str,
    scalar_channels: int,
    vector_channels: int,
    tokens: int,
    outputs: int,
    width: int = 64,
    layers: int = 2,
    softmax: bool = False,
    **options: bool | int | float,
) -> MixerNetwork:
    """Build a network from a mixer's name.

    Args:
        name: One of :data:`MIXERS`.
        scalar_channels: c of the features.
        vector_channels: cv of the features, which may be 0.
        tokens: t.
        outputs: Slow coordinates, or states.
        width: Scalar channels of the tokens in the network; it has a quarter as many vector channels.
        layers: Blocks; for mixers without blocks ("mlp", "pooling", DeepSets) hidden layers of the
            perceptron at the end, which has one otherwise.
        softmax: Whether outputs are probabilities of states, as in a VAMPNet.
        **options: See :class:`MixerOptions`.

    Raises:
        ConfigError: The mixer or one of its options is unknown, or a value is impossible.
    """
    chosen = _choose(name, options)
    # "attention" makes vectors of the directions between tokens where features have none.
    vectors = width // 4 if vector_channels or name == "attention" else 0
    _check(name, width, layers, tokens, outputs, chosen.heads)
    chiral = chosen.chiral

    blocks: list[nn.Module] = []
    pooling: Flatten | MeanPooling | DeepSets = MeanPooling(width, vectors, True, chiral)
    if name == "mlp":
        pooling = Flatten(scalar_channels, vector_channels, tokens, width // 4, chiral)
    elif name == "pooling":
        pooling = MeanPooling(width, vectors, False, chiral)
    elif name == "deepsets-lp":
        pooling = DeepSets(LinearPower(width, chosen.powers), width, vectors, chiral)
    elif name == "deepsets-le":
        pooling = DeepSets(LinearExponential(width, 4 * width), width, vectors, chiral)
    elif name == "transformer":
        blocks = [TransformerBlock(width, chosen.heads) for _ in range(layers)]
    elif name == "attention":
        order = chosen.sphere_order if chosen.sphere else 0
        blocks = [
            EquivariantAttention(width, vectors, chosen.heads, chiral, order) for _ in range(layers)
        ]
    else:
        blocks = [
            GammaBlock(width, vectors, chosen.cutoff, chosen.routing, chiral) for _ in range(layers)
        ]

    distinct = name == "mlp" or chosen.token_identity
    embedding = Embedding(
        scalar_channels, vector_channels, tokens, width, vectors, chiral, chosen.token_identity
    )
    head = _perceptron(pooling.size, width, 1 if blocks else layers, outputs, softmax)
    if name != "mlp":
        # Means over tokens vary little from frame to frame: without it, VAMP finds one slow
        # coordinate of alanine dipeptide in the steps in which it finds two with it.
        head.insert(0, nn.LayerNorm(pooling.size))
    return MixerNetwork(
        Standardizer(scalar_channels, vector_channels, tokens if distinct else 1),
        None if name == "mlp" else embedding,
        blocks,
        pooling,
        head,
    )


def _choose(name: str, options: dict[str, bool | int | float]) -> MixerOptions:
    """Options of a mixer, with the defaults of those not given."""
    if name not in MIXERS:
        raise ConfigError(f"unknown mixer {name!r}; known are {', '.join(MIXERS)}")
    unknown = sorted(set(options) - set(MIXERS[name]))
    if unknown:
        raise ConfigError(
            f"mixer {name!r} has no option {unknown[0]!r}; it has {', '.join(MIXERS[name])}"
        )
    return replace(MixerOptions(), **options)  # type: ignore[arg-type]


def _check(name: str, width: int, layers: int, tokens: int, outputs: int, heads: int) -> None:
    """Refuse sizes of which no network can be built."""
    for what, number, least in (
        ("width", width, 4),
        ("layers", layers, 1),
        ("tokens", tokens, 1),
        ("outputs", outputs, 1),
    ):
        if number < least:
            raise ConfigError(f"{what} starts at {least}, found {number}")
    share = {"transformer": heads, "attention": 4 * heads}.get(name, 1)
    if width % share:
        raise ConfigError(
            f"a width of {width} cannot be shared among {heads} heads: for {name!r} it has to be "
            f"a multiple of {share}"
        )


def _perceptron(size: int, width: int, layers: int, outputs: int, softmax: bool) -> nn.Sequential:
    """A perceptron with hidden layers of the given width."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(size, width), nn.SiLU()]
        size = width
    parts.append(nn.Linear(size, outputs))
    if softmax:
        parts.append(nn.Softmax(dim=1))
    return nn.Sequential(*parts)
