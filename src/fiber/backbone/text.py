"""RoBERTa tower whose layers open between self-attention and the first norm, so that fusion can add to it.

Shape letters: B batch, L text length, T width, h heads.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.backbone.attention import attention, merge_heads, split_heads
from fiber.backbone.stack import Stack
from fiber.recompute import Checkpointing, recomputed

KeyValue = tuple[Tensor, Tensor]  # keys and values (B,h,L,d) of the positions so far


class RobertaTower(nn.Module):
    """Post-norm RoBERTa encoder without pooler. `max_positions` rows of the position table; the first
    `pad_id` + 1 of them are never used, so texts hold at most `max_positions` - `pad_id` - 1 tokens."""

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate: int = 3072,
        max_positions: int = 514,
        pad_id: int = 1,
        dropout: float = 0.1,
        eps: float = 1e-5,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"text width {width} is not a multiple of its {heads} heads")
        self.width, self.heads, self.dropout, self.checkpointing = width, heads, dropout, checkpointing
        self.embeddings = Embeddings(vocab_size, width, max_positions, pad_id, dropout, eps)
        self.layers: Stack[RobertaLayer] = Stack(
            RobertaLayer(width, heads, intermediate, dropout, eps) for _ in range(layers)
        )

    def run_layer(self, index: int, y: Tensor, bias: Tensor) -> Tensor:
        """One unfused layer, (B,L,T) -> (B,L,T), recomputed in backward when checkpointing."""
        if self.checkpointing and self.training:
            return recomputed(self.checkpointing, self.layers[index], y, bias)
        return self.layers[index](y, bias)


class Embeddings(nn.Module):
    """Word + position + (single) token type embeddings, LayerNorm, dropout. Positions count the tokens that are
    not padding and start at pad_id + 1; padding has position pad_id."""

    def __init__(
        self, vocab_size: int, width: int, max_positions: int, pad_id: int, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.word = nn.Embedding(vocab_size, width, padding_idx=pad_id)
        self.position = nn.Embedding(max_positions, width, padding_idx=pad_id)
        self.token_type = nn.Embedding(1, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, past: int = 0, offset: Tensor | None = None) -> Tensor:
        """ids (B,L) int64, `past` tokens already cached, `offset` (R,T) with R >= L added after the norm
        (prompt tuning) -> (B,L,T). Raises ValueError on a text longer than the position table."""
        if past + ids.shape[1] > self.position.num_embeddings - self.pad_id - 1:
            raise ValueError(
                f"a text of {past + ids.shape[1]} tokens is longer than the position table allows "
                f"({self.position.num_embeddings - self.pad_id - 1}); lower the text length or resize the table"
            )
        token = ids != self.pad_id
        positions = (token.cumsum(1) + past) * token + self.pad_id
        x = self.norm(self.word(ids) + self.position(positions) + self.token_type(torch.zeros_like(ids)))
        x = self.dropout(x)
        return x if offset is None else x + offset[: ids.shape[1]]


class RobertaLayer(nn.Module):
    """Post-norm layer in two halves: `attend` (self-attention with its output projection) and `finish`
    (residual, norm, feed-forward). Fusion adds its cross-attention between the two."""

    def __init__(self, width: int, heads: int, intermediate: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, intermediate)
        self.fc2 = nn.Linear(intermediate, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        """y (B,L,T), additive attention bias broadcastable to (B,h,L,L) -> (B,L,T)."""
        return self.finish(y, self.attend(y, bias))

    def attend(
        self, y: Tensor, bias: Tensor | None, extend: Callable[[Tensor, Tensor], KeyValue] | None = None
    ) -> Tensor:
        """Self-attention of y (B,L,T), with output projection and dropout but without residual and norm -> (B,L,T).
        `extend`: keys and values (B,h,L,d) of y -> with those of the tokens before it."""
        q, k, v = (split_heads(proj(y), self.heads) for proj in (self.query, self.key, self.value))
        if extend is not None:
            k, v = extend(k, v)
        return self._drop(self.output(merge_heads(attention(q, k, v, bias, self.dropout if self.training else 0.0))))

    def finish(self, y: Tensor, attended: Tensor, final_norm: bool = True) -> Tensor:
        """Residual and norm, feed-forward, residual and (unless switched off) norm: (B,L,T) -> (B,L,T)."""
        y = self.norm1(attended + y)
        y = self._drop(self.fc2(F.gelu(self.fc1(y)))) + y
        return self.norm2(y) if final_norm else y

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
