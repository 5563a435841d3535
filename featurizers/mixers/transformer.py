"""Pre-norm transformer on scalars.

A. Vaswani et al., "Attention is all you need", arXiv 1706.03762, with normalisation in front as in R.
Xiong et al., arXiv 2002.04745. Positions and vectors take no part; vectors pass unchanged.

Shapes: frames ``b``, tokens ``t``, scalar channels ``w``, heads ``h`` of ``d = w / h`` channels.
"""

from torch import Tensor, nn
from torch.nn import functional

from featurizers.mixers.vectors import TokenUpdate


class TransformerBlock(nn.Module):
    """s += Attention(LayerNorm(s)), s += MLP(LayerNorm(s)).

    Args:
        width: Scalar channels w, a multiple of the number of heads.
        heads: h.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.update = TokenUpdate(width, 0, chiral=False)

    def forward(self, scalars: Tensor, vectors: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Map scalars (b, t, w) and vectors (b, t, 3, v) to the same shapes."""
        qkv = self.queries_keys_values(self.norm(scalars))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (b, h, t, d) each
        mixed = functional.scaled_dot_product_attention(q, k, v)
        scalars = scalars + self.output(mixed.transpose(1, 2).flatten(2))
        return self.update(scalars, vectors)[0], vectors
