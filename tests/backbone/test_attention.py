"""The explicit and the fused attention against each other, and the additive biases by their effect."""

import pytest
import torch

from fiber.backbone.attention import (
    attention,
    causal_bias,
    explicit_attention,
    fused_attention,
    merge_heads,
    padding_bias,
    split_heads,
)

B, HEADS, N, M, D = 2, 3, 5, 7, 4


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("bias_shape", [None, (1, HEADS, N, M), (B, 1, 1, M), (B, HEADS, N, M)])
def test_both_forms_agree_in_values_and_gradients(bias_shape):
    found = []
    for form in (explicit_attention, fused_attention):
        inputs = tensors((B, HEADS, N, D), (B, HEADS, M, D), (B, HEADS, M, D), *([bias_shape] if bias_shape else []))
        out = form(*inputs)
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        found.append([out, *(x.grad for x in inputs)])
    for explicit, fused in zip(*found, strict=True):
        torch.testing.assert_close(explicit, fused, atol=1e-4, rtol=1e-5)


def test_explicit_form_is_the_weighted_mean_of_values():
    q, k, v = tensors((1, 1, 1, D), (1, 1, 2, D), (1, 1, 2, D))
    logits = (q[0, 0, 0] @ k[0, 0].T) / D**0.5 + torch.tensor([0.0, 1.5])
    weights = logits.exp() / logits.exp().sum()
    expected = weights[0] * v[0, 0, 0] + weights[1] * v[0, 0, 1]
    bias = torch.tensor([0.0, 1.5]).view(1, 1, 1, 2)
    torch.testing.assert_close(attention(q, k, v, bias)[0, 0, 0], expected)


@pytest.mark.parametrize("form", [explicit_attention, fused_attention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_has_no_influence(form, dtype):
    q, k, v = (x.to(dtype) for x in tensors((B, HEADS, N, D), (B, HEADS, M, D), (B, HEADS, M, D)))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    out = form(q, k, v, padding_bias(mask, dtype))
    torch.testing.assert_close(out[0], form(q[:1], k[:1, :, :4], v[:1, :, :4])[0])
    other = torch.where(mask[:, None, :, None] == 1, v, 1e3)
    assert torch.equal(out, form(q, k, other.to(dtype), padding_bias(mask, dtype)))


def test_causal_bias_shows_each_query_its_past_when_queries_are_the_last_positions():
    seen = causal_bias(3, 5, torch.device("cpu"), torch.float32)[0, 0] == 0
    assert seen.tolist() == [[True] * 3 + [False] * 2, [True] * 4 + [False], [True] * 5]


def test_dropout_keeps_the_expectation_and_is_off_by_default():
    q, k, v = tensors((400, HEADS, N, D), (1, HEADS, M, D), (1, HEADS, M, D))
    q, k, v = q[:1].detach().expand(4000, -1, -1, -1), k.expand(4000, -1, -1, -1), v.expand(4000, -1, -1, -1)
    torch.manual_seed(0)
    dropped = attention(q, k, v, dropout=0.5)
    assert not torch.allclose(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), attention(q, k, v)[0], atol=0.08, rtol=0)


def test_heads_split_and_merge():
    x = torch.arange(24.0).view(1, 2, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (1, 3, 2, 4)
    assert heads[0, 1, 0].tolist() == [4, 5, 6, 7]
    assert torch.equal(merge_heads(heads), x)
