"""Softmax attention: which kernel reads, and what it gives back."""

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from recsys_edu.attention import softmax
from recsys_edu.attention.softmax import (
    CrossAttention,
    TransformerBlock,
    attend,
    attend_and_itself,
    attend_lse,
    lse_is_kept,
)
from recsys_edu.cost import count

few = settings(max_examples=20)
SEEDS = st.integers(0, 999)


def draw(seed, *tokens, dh=4, dtype=torch.float64):
    """A [2, 2, t, dh] for each t."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, t, dh, generator=generator, dtype=dtype) for t in tokens]


def plain_lse(q, k, v, mask):
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.fixture
def fused(monkeypatch):
    """How often the fused kernel gave its lse."""
    calls, real = [], softmax.attend_lse_fused

    def noting(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(softmax, "attend_lse_fused", noting)
    return calls


@pytest.mark.parametrize("queries", [1, 5])
def test_causal_is_the_lower_triangle(queries):
    q, k, v = draw(0, queries, queries, queries)
    triangle = torch.ones(queries, queries, dtype=torch.bool).tril()
    expected = attend(q, k, v, triangle)
    torch.testing.assert_close(attend(q, k, v, causal=True), expected)


@few
@given(
    keys=st.integers(1, 9),
    queries=st.integers(1, 4),
    each=st.booleans(),
    loud=st.sampled_from([1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=SEEDS,
)
def test_the_fused_lse_is_the_plain_one(keys, queries, each, loud, dtype, seed):
    """With and without a mask, of a row for all queries or of one each."""
    q, k, v = draw(seed, queries, keys, keys, dtype=dtype)
    q = loud * q
    generator = torch.Generator().manual_seed(seed)
    rows = queries if each else 1
    mask = torch.rand(2, 1, rows, keys, generator=generator) < 0.6
    mask = mask | (torch.arange(keys) == 0)
    assert lse_is_kept(q, k, v)
    for got, expected in (
        (attend_lse(q, k, v, mask), plain_lse(q, k, v, mask)),
        (attend_lse(q, k, v), plain_lse(q, k, v, torch.ones_like(mask))),
    ):
        for part, whole in zip(got, expected, strict=True):
            scale = whole.abs().max().clamp(min=1) * (100 if loud > 1 else 1)
            eps = torch.finfo(dtype).eps
            assert (part - whole).abs().max() <= 64 * eps * scale


@few
@given(keys=st.integers(0, 9), queries=st.integers(0, 4), seed=SEEDS)
def test_an_own_key_is_one_more_key(keys, queries, seed):
    q, k_own, v_own, k, v = draw(seed, queries, queries, queries, keys, keys)
    got = attend_and_itself(q, k, v, k_own, v_own, None)
    for i in range(queries):
        one = slice(i, i + 1)
        both = [
            torch.cat([shared, own[:, :, one]], dim=2)
            for shared, own in ((k, k_own), (v, v_own))
        ]
        torch.testing.assert_close(got[:, :, one], attend(q[:, :, one], *both))


def test_no_score_is_written_for_candidates_that_read_themselves(fused):
    tensors = draw(0, 3, 5, 5, 3, 3)
    q, k, v, k_own, v_own = tensors
    attend_and_itself(q, k, v, k_own, v_own, None)
    assert len(fused) == 1
    for tensor in tensors:  # a gradient goes through the plain form, and through lse
        tensor.requires_grad_()
    read = attend_and_itself(q, k, v, k_own, v_own, None)
    assert len(fused) == 1
    grads = torch.autograd.grad(read.square().sum(), tensors)
    assert all(grad.abs().sum() > 0 for grad in grads)
    with torch.no_grad():
        attend_and_itself(q, k, v, k_own, v_own, None)
    assert len(fused) == 2


def test_the_fused_lse_is_not_asked_where_it_may_not_be(fused):
    q, k, v = draw(0, 3, 5, 5)
    with sdpa_kernel(SDPBackend.MATH):
        attend_lse(q, k, v)
    count(attend_lse, q, k, v)  # counts the plain form, as of all attention
    for few_q, few_k, few_v in ((q[:, :, :0], k, v), (q, k[:, :, :0], v[:, :, :0])):
        read, lse = attend_lse(few_q, few_k, few_v)  # the kernel would end the process
        assert read.shape == few_q.shape and (lse == float("-inf")).all()
    assert not fused


def test_a_pytorch_without_that_kernel_reads_the_same(monkeypatch):
    q, k, v = draw(0, 3, 5, 5)
    expected = attend_lse(q, k, v)
    monkeypatch.setattr(softmax, "_FUSED", None)
    assert not lse_is_kept(q, k, v)
    for got, part in zip(attend_lse(q, k, v), expected, strict=True):
        torch.testing.assert_close(got, part)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_merged_has_the_type_of_what_was_read(dtype):
    """The kernel keeps lse in float32; the read goes on into layers of 16 bits."""
    q, k, v, k_own, v_own = draw(0, 3, 5, 5, 3, 3, dtype=torch.float32)
    low = [x.to(dtype) for x in (q, k, v, k_own, v_own)]
    got = attend_and_itself(*low, None)
    assert got.dtype == dtype
    exact = attend_and_itself(*(x.double() for x in low), None)
    assert (got - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@dataclass(frozen=True)
class Both:
    """A block as `assert_same` takes it."""

    float32: nn.Module
    float64: nn.Module


def test_a_block_that_reads_causally_is_the_block_under_the_triangle(assert_same):
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, dropout=0.0)
    x = torch.randn(2, 6, 8)
    triangle = torch.ones(6, 6, dtype=torch.bool).tril()

    def run(block, mask, **how):
        y = x.to(block.out.weight.dtype)
        return block(y, *block.keys_values(y), mask, **how)

    assert_same(
        lambda block: run(block, None, causal=True),
        lambda block: run(block, triangle),
        Both(block, copy.deepcopy(block).double()),
    )


def test_a_block_drops_all_that_it_adds():
    """Both of its branches: with everything dropped, tokens go through as they are."""
    block = TransformerBlock(8, 2, dropout=1.0).train()
    x = torch.randn(2, 6, 8)
    assert torch.equal(block(x, *block.keys_values(x), None), x)
    block.ffn = nn.Sequential()  # whose branch is now its norm
    block.norm_attention = nn.Identity()
    assert torch.equal(block(x, *block.keys_values(x), None), x)


def test_cross_attention_starts_with_scores_of_variance_one():
    """W_q and W_k are orthogonal; so normed vectors keep their lengths and angles."""
    torch.manual_seed(0)
    attention = CrossAttention(64, 2)
    keys = attention.key_value.weight[:64]
    for weight in (attention.query.weight, keys):
        torch.testing.assert_close(weight @ weight.T, torch.eye(64), atol=1e-5, rtol=0)
    x, y = torch.randn(2, 1, 500, 64).unbind()
    scores = attention.queries(x) @ attention.keys_values(y)[0].mT * 32**-0.5
    assert 0.8 < scores.var() < 1.25
