"""The joint block: one transformer block for each of several streams alone and for all of them together.

Gong et al., ICLR 2023, arXiv 2210.07839 (CAV-MAE): attention and feed-forward net are shared by all passes, the norms
before them and after the block are each pass's own.
Shapes: R rows, N tokens, D width, T packed tokens.  State: none.
"""

from __future__ import annotations

from torch import Tensor, nn

from multissl.contract.per_stream import PerStream
from multissl.layers.attention import Attention
from multissl.layers.init import init_linear
from multissl.layers.kernels.base import layout
from multissl.layers.transformer import MLP
from multissl.precision import at_least_fp32

TOGETHER = "(all)"
"""The name of the pass over all streams; no stream has brackets in its name."""


class JointBlock(nn.Module):
    """One block with norms for each stream alone and for all together."""

    def __init__(self, dim: int, heads: int, streams: list[str], backend: str = "sdpa") -> None:
        super().__init__()
        self.attn, self.mlp = Attention(dim, heads, backend), MLP(dim, 4 * dim)
        self.norms: PerStream[nn.ModuleList] = PerStream(
            {s: nn.ModuleList(nn.LayerNorm(dim, 1e-6) for _ in range(3)) for s in (*streams, TOGETHER)}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, 0.0)

    def forward(self, x: Tensor, stream: str, valid: Tensor | None = None) -> Tensor:
        """Tokens [R, N, D] of a stream alone, or of all of them under the name TOGETHER, to normed tokens [R, N, D]."""
        before, middle, after = self.norms[stream]
        packing = layout([(x.shape[0], x.shape[1])], x.device, self.attn.kernel, False, [valid])
        flat = x.flatten(0, 1).to(self.mlp.fc1.weight.dtype)  # [T, D]
        flat = flat + self.attn(before(flat), packing)
        return after(flat + self.mlp(middle(flat))).view(x.shape)


class Alone(nn.Module):
    """The head of a tower: the joint block over one stream's tokens, and their mean."""

    def __init__(self, joint: JointBlock, stream: str) -> None:
        super().__init__()
        self.joint, self.stream = joint, stream

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """[R, N, D] to [R, D]."""
        return mean_token(self.joint(tokens, self.stream, valid), valid)


def mean_token(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean of the real tokens of x [R, N, D], in fp32 or wider: [R, D]."""
    x = at_least_fp32(x)
    if valid is None:
        return x.mean(1)
    return (x * valid[:, :, None]).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
