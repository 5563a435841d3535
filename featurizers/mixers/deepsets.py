"""DeepSets with the LP and LE embeddings.

P. Wang, S. Yang, S. Li, Z. Wang, P. Li, "Polynomial width is sufficient for set representation with
high-dimensional features", arXiv 2307.04001. A set of t tokens is described by the sum over tokens of
an embedding φ of each, and every continuous function of the set is a function of that sum if φ is

    LP   φ(x) = [ ψ_N(w_k · x) ]_k,   ψ_N(z) = (z, z², ..., z^N)
    LE   φ(x) = [ exp(v_k · x) ]_k

with N = t and enough directions w_k or v_k: the sums of the first t powers of t numbers are as good as
the numbers themselves. Both embeddings explode for large arguments, so x is bounded here by tanh, which
is invertible and takes no information away. Means over tokens stand for sums.

Shapes: frames ``b``, tokens ``t``, scalar channels ``w``, vector channels ``v``, invariants ``p``.
"""

import torch
from torch import Tensor, nn

from featurizers.mixers.pooling import VectorPooling


class LinearPower(nn.Module):
    """LP: mean_i z_ik^n for n = 1..N, with z_ik = tanh(w_k · x_i + b_k).

    Args:
        width: Channels of x, and number of directions w_k.
        powers: N. The number of tokens makes the code complete; powers beyond some four are so
            close to one another that little can be learnt from them.
    """

    def __init__(self, width: int, powers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.powers = powers
        self.size = width * powers

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, t, w) to the code (b, N w) of the set."""
        z = torch.tanh(self.linear(x))
        sums, power = [z.mean(1)], z
        for _ in range(self.powers - 1):
            power = power * z
            sums.append(power.mean(1))
        return torch.cat(sums, dim=1)


class LinearExponential(nn.Module):
    """LE: mean_i exp(v_k · tanh(x_i)), with |v_k|_1 ≤ 8, so that no exponential exceeds e⁸.

    The v_k are as long as they may be at first: where they are short, the exponentials are nearly
    linear, and the code is little more than a mean.

    Args:
        width: Channels of x.
        size: Number of exponentials.
    """

    LIMIT = 8.0

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, size, bias=False)
        with torch.no_grad():
            self.linear.weight.mul_(self.LIMIT / self._lengths())
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, t, w) to the code (b, size) of the set."""
        weight = self.linear.weight * (self.LIMIT / self._lengths().clamp_min(self.LIMIT))
        return torch.exp(torch.tanh(x) @ weight.T).mean(1)

    def _lengths(self) -> Tensor:
        """|v_k|_1 of all rows, (size, 1)."""
        return torch.linalg.vector_norm(self.linear.weight, ord=1, dim=1, keepdim=True)


class DeepSets(nn.Module):
    """The code of the set of scalars, and products of pooled vectors.

    Args:
        code: LP or LE.
        width: Scalar channels w.
        channels: Vector channels v, which may be 0.
        chiral: Whether to have triple products, without which mirror images are the same.
    """

    def __init__(
        self, code: LinearPower | LinearExponential, width: int, channels: int, chiral: bool
    ) -> None:
        super().__init__()
        self.code = code
        self.vectors = VectorPooling(width, channels, True, chiral) if channels else None
        self.size = code.size + (self.vectors.size if self.vectors is not None else 0)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Map scalars (b, t, w) and vectors (b, t, 3, v) to invariants (b, size)."""
        code = self.code(scalars)
        if self.vectors is None:
            return code
        return torch.cat([code, self.vectors(scalars, vectors)], dim=1)
