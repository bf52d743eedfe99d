"""The one attention function of the backbone.

Shape letters: B batch (or windows x batch), h heads, N queries, M keys, d head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -10000.0  # additive value of masked text positions (the reference's constant; finite in bf16 and fp16)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √d + bias) v.

    q (B,h,N,d), k and v (B,h,M,d) -> (B,h,N,d). bias (n,h,N,M), broadcastable in all but the first: row b of q takes
    the bias b % n, n a divisor of B. `dropout` is the probability of dropping an attention weight (0 outside
    training). CUDA runs the fused kernel; on CPU the explicit form is faster whenever the bias needs a gradient, as
    every window bias does.
    """
    return (fused_attention if q.is_cuda else explicit_attention)(q, k, v, bias, dropout)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """`attention` through torch's scaled_dot_product_attention, shapes the same; the bias is cast to the dtype of
    q. Its last stride must be 1: any other sends torch to the form that writes all logits in fp32."""
    if bias is None or len(bias) in (1, len(q)):
        bias = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    # The n biases as heads: rows would have to be repeated, and are larger than q, k and v together.
    q, k, v = (x.unflatten(0, (-1, len(bias))).flatten(1, 2) for x in (q, k, v))
    out = fused_attention(q, k, v, bias.flatten(0, 1)[None], dropout)
    return out.unflatten(1, (len(bias), -1)).flatten(0, 1)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """`attention` written out, shapes the same; the softmax runs in the dtype of its input."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = (logits.unflatten(0, (-1, bias.shape[0])) + bias.to(logits.dtype)).flatten(0, 1)
    weights = logits.softmax(dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B,N,h*d) -> (B,h,N,d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B,h,N,d) -> (B,N,h*d)."""
    return x.transpose(1, 2).flatten(2)


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask (B,L), 1 = token, 0 = padding -> additive bias (B,1,1,L)."""
    return ((1 - mask.to(dtype)) * MASKED)[:, None, None, :]


def causal_bias(queries: int, keys: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Additive bias (1,1,N,M) that lets query i see keys up to i + (M - N): the queries are the last N of M."""
    ahead = torch.ones(queries, keys, device=device, dtype=torch.bool).triu(keys - queries + 1)
    return torch.zeros(queries, keys, device=device, dtype=dtype).masked_fill(ahead, MASKED)[None, None]
