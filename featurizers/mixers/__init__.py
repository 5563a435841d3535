"""Token mixers: from the features of a frame's tokens to a few slow collective variables.

    network = build_network("attention", scalar_channels=64, vector_channels=16, tokens=10, outputs=2)
    network.standardize(features.scalars, features.vectors)
    network(scalars, vectors, positions)  # (b, 2)

Every network is the same sequence of parts: standardised features, linear embedding, blocks that mix
the tokens, invariant pooling, a multilayer perceptron. The idea is that of geom2vec's token mixers (Z.
Pengmei, C. Lorpaiboon, S. C. Guo, J. Weare, A. R. Dinner, arXiv 2409.19838).

Shapes: frames ``b``, tokens ``t``, scalar channels ``w``, vector channels ``v``. Blocks map scalars
(b, t, w), vectors (b, t, 3, v) and positions (b, t, 3) in Å to new scalars and vectors of the same
shapes; poolings map them to invariants (b, p).
"""

from featurizers.mixers.network import MIXERS, MixerNetwork, build_network

__all__ = ["MIXERS", "MixerNetwork", "build_network"]
