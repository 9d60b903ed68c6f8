"""XOR attention: the linear form is the block under the dense mask, at less cost."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recsys_edu.attention import masks
from recsys_edu.attention.pointwise import PointwiseBlock, attend_pointwise
from recsys_edu.attention.xor import xor_attention
from recsys_edu.cost import count

few = settings(max_examples=30, deadline=None)
SHAPES = st.fixed_dictionaries(
    dict(b=st.integers(1, 3), n=st.integers(0, 7), r=st.integers(1, 4)),
)
SEEDS = st.integers(0, 999)


def block_of(d, heads, seed=0):
    """Weights large enough for all parts to be heard."""
    torch.manual_seed(seed)
    block = PointwiseBlock(d, heads, dropout=0.0)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.5)
    return block


def draw(seed, b, n, r, d):
    """Links [b, r, d], events [b, n, d] and a mask with padding anywhere."""
    generator = torch.Generator().manual_seed(seed)
    links, events = (torch.randn(b, t, d, generator=generator) for t in (r, n))
    return links, events, torch.rand(b, n, generator=generator) < 0.7


def both_kinds(block, links, events, mask, form):
    """What is meant of the result: all links, and the events that are there."""
    links, events = xor_attention(block, links, events, mask, form=form)
    return torch.cat([links.flatten(), events[mask].flatten()])


@few
@given(n=st.integers(0, 6), r=st.integers(0, 4))
def test_the_mask_allows_a_token_the_other_kind_alone(n, r):
    dense = masks.xor(n, r).dense()
    assert dense.shape == (n + r, n + r)
    for q in range(n + r):
        for k in range(n + r):
            assert dense[q, k] == ((q < n) != (k < n)), (q, k)
    assert masks.xor(n, r).pairs == 2 * n * r


@few
@given(shape=SHAPES, seed=SEEDS, heads=st.sampled_from([1, 2, 4]))
def test_the_linear_form_is_the_dense_one(assert_same, shape, seed, heads):
    """In both precisions, links and events, over padding and empty histories."""
    links, events, mask = draw(seed, **shape, d=8)

    def run(block, form):
        dtype = block.out.weight.dtype
        return both_kinds(block, links.to(dtype), events.to(dtype), mask, form)

    assert_same(
        lambda block: run(block, "linear"),
        lambda block: run(block, "dense"),
        in_both_precisions(block_of(8, heads)),
    )


@few
@given(shape=SHAPES, seed=SEEDS, heads=st.sampled_from([1, 2]))
def test_so_are_its_gradients(assert_same, shape, seed, heads):
    """Of all weights, links and events, through a projection that weighs them apart."""
    drawn = draw(seed, **shape, d=8)

    @torch.enable_grad()
    def gradients(block, form):
        dtype = block.out.weight.dtype
        links, events = (x.to(dtype).requires_grad_() for x in drawn[:2])
        out = both_kinds(block, links, events, drawn[2], form)
        weights = torch.linspace(-1, 1, len(out), dtype=dtype)
        leaves = [links, events, *block.parameters()]
        parts = torch.autograd.grad((weights * out).sum(), leaves)
        return torch.cat([part.flatten() for part in parts])

    assert_same(
        lambda block: gradients(block, "linear"),
        lambda block: gradients(block, "dense"),
        in_both_precisions(block_of(8, heads)),
    )


class in_both_precisions:
    """A block as `assert_same` takes it."""

    def __init__(self, block):
        self.float32, self.float64 = block, copy.deepcopy(block).double()


@pytest.mark.parametrize("form", ["linear", "dense"])
def test_the_block_is_its_formula(form):
    """One head, by loops: who reads whom, and what each divides by."""
    block = block_of(4, 1).double()
    links, events, _ = (x.double() for x in draw(1, b=1, n=3, r=2, d=4))
    mask = torch.tensor([[True, False, True]])
    u, q = block.gate_queries(torch.cat([links, events], dim=1))
    k, v = block.keys_values(torch.cat([links, events], dim=1))
    reads = {0: (2, 4), 1: (2, 4), 2: (0, 1), 3: (0, 1), 4: (0, 1)}  # 3 is padding
    expected = []
    for token, keys in reads.items():
        weights = [
            nn.functional.silu(q[0, 0, token] @ k[0, 0, key] / 2) for key in keys
        ]
        read = sum(w * v[0, 0, key] for w, key in zip(weights, keys, strict=True)) / 2
        x = torch.cat([links, events], dim=1)[0, token]
        expected.append(x + block.out(block.norm_read(read) * u[0, token]))
    got = torch.cat(xor_attention(block, links, events, mask, form=form), dim=1)[0]
    for token in (0, 1, 2, 4):
        torch.testing.assert_close(got[token], expected[token])


@pytest.mark.parametrize("form", ["linear", "dense"])
def test_links_over_no_event_are_finite_and_read_zero(form):
    block = block_of(8, 2)
    links, events, mask = draw(0, b=2, n=4, r=3, d=8)
    mask[0] = False
    got = xor_attention(block, links, events, mask, form=form)[0]
    none = torch.zeros(2, 2, 3, 4)
    alone = block.update(links, block.gate_queries(links)[0], none)
    assert got.isfinite().all()
    torch.testing.assert_close(got[0], alone[0])


@pytest.mark.parametrize("form", ["linear", "dense"])
def test_padding_divides_nothing(form):
    """A link's normaliser is its user's number of events, wherever padding stands."""
    block = block_of(8, 2)
    links, events, _ = draw(0, b=1, n=6, r=3, d=8)
    mask = torch.tensor([[False, True, True, False, True, False]])
    padded = xor_attention(block, links, events, mask, form=form)[0]
    events = events[:, mask[0]]
    alone = xor_attention(block, links, events, mask[:, mask[0]], form=form)[0]
    torch.testing.assert_close(padded, alone)


@few
@given(
    chunks=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    heads=st.sampled_from([1, 2]),
    seed=SEEDS,
)
def test_what_a_link_reads_may_be_summed_in_chunks(assert_same, chunks, heads, seed):
    """In every block: a pointwise weight knows its own pair, so a sum has no order."""
    links, events, mask = draw(seed, b=2, n=sum(chunks), r=3, d=8)

    def at_once(block):
        x, y = (t.to(block.out.weight.dtype) for t in (links, events))
        return xor_attention(block, x, y, mask)[0]

    def in_chunks(block):
        x, y = (t.to(block.out.weight.dtype) for t in (links, events))
        u, q = block.gate_queries(x)
        total = sum(
            attend_pointwise(q, *block.keys_values(part), real[:, None, None], 1)
            for part, real in zip(
                y.split(chunks, 1), mask.split(chunks, 1), strict=True
            )
        )
        count = mask.sum(-1).clamp(min=1)[:, None, None, None]
        return block.update(x, u, total / count)

    assert_same(in_chunks, at_once, in_both_precisions(block_of(8, heads)))


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def largest(fn, *args):
    with Largest() as mode:
        fn(*args)
    return mode.numel


def forward_and_backward(block, n, r, form):
    links, events, _ = draw(0, b=1, n=n, r=r, d=16)
    mask = torch.ones(1, n, dtype=torch.bool)
    links, events = (x.requires_grad_() for x in (links, events))
    sum(
        x.sum() for x in xor_attention(block, links, events, mask, form=form)
    ).backward()


@pytest.mark.parametrize("r", [4, 32])
def test_no_tensor_is_quadratic_in_n(r):
    """At most N max(2 d, heads r), backward too; the dense form makes (N + r)^2."""
    block, n = block_of(16, 2), 512
    linear = largest(forward_and_backward, block, n, r, "linear")
    assert linear == n * max(2 * 16, 2 * r)
    dense = largest(forward_and_backward, block, n, r, "dense")
    assert dense == 2 * (n + r) ** 2


def test_its_flops_are_linear_in_n():
    """Counted: doubling N doubles what is above the cost of N = 0, exactly."""
    block, r, d = block_of(16, 2), 8, 16

    def flops(n):
        links, events, mask = draw(0, b=1, n=n, r=r, d=d)
        return count(xor_attention, block, links, events, mask).flops

    fixed = flops(0)
    per_event = flops(256) - fixed
    assert flops(512) - fixed == 2 * per_event
    # Five projections of a token, of r links and 256 events; scores and sums both ways.
    assert fixed == r * 10 * d**2
    assert per_event == 256 * (10 * d**2 + 2 * 2 * 2 * r * d)
