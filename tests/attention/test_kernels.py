"""The kernels compute what their references do, and read memory once.

Without a GPU the Triton kernels run in Triton's interpreter, in float32 and float16: it
multiplies bfloat16 wrongly. What the interpreter accepts the compiler may refuse, so
they are also compiled, for cards that need not be there.
"""

import os
import subprocess
import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from recsys_edu.attention.kernels import (
    candidate_attention,
    candidates,
    forms,
    fuse_links,
    xor,
    xor_attend,
)
from recsys_edu.attention.kernels.forms import takes_triton
from recsys_edu.attention.pointwise import PointwiseBlock
from recsys_edu.attention.xor import xor_attention
from recsys_edu.cost import count
from recsys_edu.cost.kernels import fuse_links_cost, pointwise_cost, xor_attend_cost
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.lime import LimeXOR

pytest.importorskip("triton")
from triton.runtime.interpreter import InterpreterBuilder

from recsys_edu.attention.kernels import candidates_triton, links_triton, xor_triton

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
interpreter = pytest.mark.skipif(CUDA, reason="looks into the interpreter, on a CPU")
TYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA

few = settings(max_examples=8)
SEEDS = st.integers(0, 999)


@pytest.fixture(scope="module", autouse=True)
def small_spans():
    """A few events are then several spans of several blocks, the last one ragged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xor, "SPAN", 32)
        patch.setattr(candidates, "SPAN", 64)
        yield


def draw_heads(generator, batch, heads, tokens, dh, kinds=3):
    """[batch, heads, tokens, dh] tensors as blocks make them: chunks, split."""
    x = torch.randn(batch, tokens, kinds * heads * dh, generator=generator)
    parts = x.to(DEVICE).chunk(kinds, dim=-1)
    return [part.unflatten(-1, (heads, dh)).transpose(1, 2) for part in parts]


def draw_mask(generator, batch, n):
    return (torch.rand(batch, n, generator=generator) < 0.7).to(DEVICE)


def draw_tokens(seed, b, heads, n, r, dh):
    """What `xor_attend` takes: links, events, and a mask with padding anywhere."""
    generator = torch.Generator().manual_seed(seed)
    links = draw_heads(generator, b, heads, r, dh)
    events = draw_heads(generator, b, heads, n, dh)
    return links, events, draw_mask(generator, b, n)


def assert_close(got, reference, exact):
    """Each of ``got`` misses the truth by no more than twice what the reference does.

    And by a few units in the last place of the largest number besides, since the
    reference may be right by luck. In float32 they are 64, one for each operation on
    the longest path and some for the order of sums. In 16 bits they are 4, one for each
    time that a kernel rounds to them: a gradient, a weight, a slope, a result; its sums
    are in float32.
    """
    for x, y, truth in zip(got, reference, exact, strict=True):
        assert x.shape == truth.shape and x.dtype == y.dtype
        if not truth.numel():
            continue
        unit = torch.finfo(x.dtype).eps / 2
        units = 64 if x.dtype == torch.float32 else 4
        slack = units * unit * truth.abs().max().clamp(min=1)
        budget = 2 * (y.double() - truth).abs().max() + slack
        assert (x.double() - truth).abs().max() <= budget


def in_three_ways(run, dtype, *tensors):
    """``run(form, *tensors)`` by the kernel, by the reference, and in float64.

    All three from the same numbers: those that ``dtype`` can hold.
    """
    low = [tensor.to(dtype) for tensor in tensors]
    exact = run("reference", *(tensor.double() for tensor in low))
    return run("triton", *low), run("reference", *low), exact


# XOR attention.

SHAPES = st.fixed_dictionaries(
    dict(
        b=st.integers(1, 2),
        heads=st.integers(1, 2),
        n=st.integers(0, 70),
        r=st.sampled_from([1, 3, 16, 17]),
        dh=st.sampled_from([1, 4, 16, 20]),
    )
)


def reads(form, mask, *tensors):
    return xor_attend(tensors[:3], tensors[3:], mask, form=form)


def gradients(form, mask, *tensors):
    """Of all six, through projections that weigh every number of a user's apart."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = reads(form, mask, *leaves)
    weights = []
    for part in out:
        row = torch.linspace(-1, 1, part[0].numel(), device=DEVICE).to(part.dtype)
        weights.append(row.view_as(part[0]).expand_as(part))
    return torch.autograd.grad(out, leaves, weights)


# More spans than the second kernel adds at a time.
LONG = example(shape=dict(b=1, heads=2, n=600, r=3, dh=4), seed=0, dtype=torch.float32)


@pytest.mark.parametrize("run", [reads, gradients])
@few
@given(shape=SHAPES, seed=SEEDS, dtype=st.sampled_from(TYPES))
@LONG
def test_xor_attend_is_its_reference(run, shape, seed, dtype):
    links, events, mask = draw_tokens(seed, **shape)

    def with_mask(form, *tensors):
        return run(form, mask, *tensors)

    assert_close(*in_three_ways(with_mask, dtype, *links, *events))


@pytest.mark.parametrize("run", [reads, gradients])
def test_a_user_without_events_is_read_as_zero(run):
    links, events, mask = draw_tokens(0, b=2, heads=2, n=40, r=3, dh=4)
    mask[0] = False
    got = run("triton", mask, *links, *events)
    assert all(part.isfinite().all() for part in got)
    assert (got[0][0] == 0).all() and (got[0][1] != 0).all()  # or q_links' gradient


def test_padding_is_not_read_whatever_it_holds():
    links, (q, k, v), mask = draw_tokens(0, b=2, heads=2, n=70, r=3, dh=4)
    pad = ~mask[:, None, :, None]
    loud = k.masked_fill(pad, 30), v.masked_fill(pad, -30)
    quiet = xor_attend(links, (q, k, v), mask, form="triton")[0]
    assert torch.equal(quiet, xor_attend(links, (q, *loud), mask, form="triton")[0])


@pytest.mark.parametrize("dtype", TYPES)
def test_a_user_s_result_is_the_same_to_the_bit_in_any_batch(dtype):
    """And padded to any length: spans are a constant, and are added in their order."""
    links, events, mask = draw_tokens(0, b=3, heads=2, n=70, r=3, dh=4)
    links, events = ([x.to(dtype) for x in kind] for kind in (links, events))

    mask[1, 30:] = False

    def run(rows, n):
        alone = [x[rows] for x in links], [x[rows, :, :n] for x in events]
        padded = mask[rows, :n]
        read = xor_attend(*alone, padded, form="triton")
        return read[0], *gradients("triton", padded, *alone[0], *alone[1])[:1]

    for whole, row in zip(run(slice(None), 70), run(slice(1, 2), 30), strict=True):
        assert torch.equal(whole[1:2], row)


@pytest.mark.parametrize("layout", ["dense", "of two projections", "expanded"])
def test_tokens_may_lie_anyhow(layout):
    """The kernel reads with one set of strides; what has others is copied."""
    links, events, mask = draw_tokens(0, b=2, heads=2, n=40, r=3, dh=4)
    change = {
        "dense": lambda x: x.contiguous(),
        "of two projections": lambda x: x.mT.contiguous().mT,
        "expanded": lambda x: x[:1].expand_as(x),
    }[layout]
    for tokens in (links, events):
        tokens[0] = change(tokens[0])
    assert_close(
        *in_three_ways(partial(with_mask, mask), torch.float32, *links, *events)
    )


def with_mask(mask, form, *tensors):
    return reads(form, mask, *tensors)


def test_a_second_derivative_is_refused_and_not_wrong():
    links, events, mask = draw_tokens(0, b=1, heads=1, n=3, r=2, dh=4)
    links[0].requires_grad_()
    out = xor_attend(links, events, mask, form="triton")[0]
    [first] = torch.autograd.grad(out.square().sum(), links[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# What a kernel asks of memory.


class Traffic:
    """Addresses that kernels load and store, and how often; all of tensors, or it says.

    The interpreter hands every access to its builder, with the addresses.
    """

    def __init__(self, patch):
        self.loads, self.stores, self.bytes = Counter(), Counter(), {}
        load = InterpreterBuilder.create_masked_load
        store = InterpreterBuilder.create_masked_store

        def note_load(builder, pointers, mask, *rest):
            self.note(self.loads, pointers, mask)
            return load(builder, pointers, mask, *rest)

        def note_store(builder, pointers, value, mask, *rest):
            self.note(self.stores, pointers, mask)
            return store(builder, pointers, value, mask, *rest)

        patch.setattr(InterpreterBuilder, "create_masked_load", note_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", note_store)

    def note(self, counter, pointers, mask):
        addresses = pointers.data[mask.data].tolist()
        counter.update(addresses)
        size = max(pointers.get_element_ty().primitive_bitwidth, 8) // 8
        self.bytes.update(dict.fromkeys(addresses, size))

    def times(self, counter, *tensors):
        """How often each number of these tensors was asked for: {times: numbers}."""
        seen = Counter()
        for tensor in tensors:
            start, step = tensor.data_ptr(), tensor.element_size()
            offsets = torch.zeros((), dtype=torch.long)
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                offsets = offsets.unsqueeze(-1) + torch.arange(size) * stride
            seen.update(
                counter.pop(start + step * int(o), 0) for o in offsets.flatten()
            )
        return dict(seen)

    def distinct(self):
        return sum(self.bytes[at] for at in {*self.loads, *self.stores})


@pytest.fixture
def traffic(monkeypatch):
    return Traffic(monkeypatch)


@interpreter
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("backward", [False, True])
def test_the_history_is_read_once(monkeypatch, dtype, backward):
    """Every number of an event once, links once a span; nothing beside the tensors."""
    b, heads, n, r, dh = 2, 5, 70, 3, 4
    spans = 3
    links, events, mask = draw_tokens(0, b, heads, n, r, dh)
    links, events = ([x.to(dtype) for x in kind] for kind in (links, events))
    if backward:
        for x in (*links, *events):
            x.requires_grad_()
        out = xor_attend(links, events, mask, form="triton")
        weights = [torch.randn_like(x) for x in out]
        traffic = Traffic(monkeypatch)
        torch.autograd.grad(out, [*links, *events], weights)
    else:
        traffic = Traffic(monkeypatch)
        xor_attend(links, events, mask, form="triton")
    sums = 3 if backward else 1
    cost = xor_attend_cost(b, heads, n, r, dh, dtype.itemsize, backward=backward)
    again = 4 * sums * spans * b * heads * r * dh  # written, and then read
    normaliser = 4 * b
    assert traffic.distinct() + again == cost.bytes + normaliser
    assert set(traffic.stores.values()) == {1}
    assert traffic.times(traffic.loads, *events) == {1: 3 * b * heads * n * dh}
    assert traffic.times(traffic.loads, *links) == {spans: 3 * b * heads * r * dh}
    assert traffic.times(traffic.loads, mask) == {heads: b * n}
    # What is left: sums and normalisers and, backward, two gradients.
    width = b * heads * dh
    rest = Counter({1: width * sums * spans * r})
    rest[spans * heads if backward else heads] += b
    if backward:
        rest += Counter({1: width * n, spans: width * r})
    assert Counter(traffic.loads.values()) == rest


@pytest.mark.parametrize("backward", [False, True])
def test_the_kernel_s_flops_are_the_reference_s(backward):
    """Backward, the kernel computes the scores again: two products of r N dh a head."""
    b, heads, n, r, dh = 2, 2, 40, 3, 4
    links, events, mask = draw_tokens(0, b, heads, n, r, dh)
    forward = count(reads, "reference", mask, *links, *events).flops
    both = count(gradients, "reference", mask, *links, *events).flops
    again = 2 * 2 * b * heads * n * r * dh if backward else 0
    expected = both - forward + again if backward else forward
    got = xor_attend_cost(b, heads, n, r, dh, 4, backward=backward)
    assert got.flops == expected


# XOR attention in the model.


@pytest.fixture
def through_the_kernel(monkeypatch):
    """Makes the "fused" form of `xor_attention` take the kernel, GPU or not."""
    fused = partial(xor_attend, form="triton")
    monkeypatch.setattr("recsys_edu.attention.xor.xor_attend", fused)


def block_of(d, heads, dtype):
    torch.manual_seed(0)
    block = PointwiseBlock(d, heads, dropout=0.0)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.5)
    return block.to(DEVICE, dtype)


@few
@given(n=st.integers(0, 40), r=st.integers(1, 5), heads=st.sampled_from([1, 2, 4]))
def test_the_fused_form_is_the_dense_one(n, r, heads):
    """Through a block, to its weights' gradients."""
    generator = torch.Generator().manual_seed(n)
    links, events = (
        torch.randn(2, t, 8, generator=generator).to(DEVICE) for t in (r, n)
    )
    mask = draw_mask(generator, 2, n)

    def run(dtype, form):
        block = block_of(8, heads, dtype)
        leaves = [x.to(dtype).requires_grad_() for x in (links, events)]
        got, read = xor_attention(block, *leaves, mask, form=form)
        out = torch.cat([got.flatten(), read[mask].flatten()])
        weights = torch.linspace(-1, 1, len(out), dtype=dtype, device=DEVICE)
        leaves += block.parameters()
        return out, *torch.autograd.grad((weights * out).sum(), leaves)

    with pytest.MonkeyPatch.context() as patch:
        fused = partial(xor_attend, form="triton")
        patch.setattr("recsys_edu.attention.xor.xor_attend", fused)
        got = run(torch.float32, "fused")
    dense = run(torch.float32, "dense"), run(torch.float64, "dense")
    assert_close(got, *dense)


@pytest.mark.parametrize("layers", [1, 3])
def test_lime_xor_may_take_the_fused_form(through_the_kernel, monkeypatch, layers):
    """In its blocks before the last, and never with prefixes."""
    calls = []

    def noting(*args, **kwargs):
        calls.append(kwargs)
        return xor_attention(*args, **kwargs)

    monkeypatch.setattr("recsys_edu.encoders.lime.xor_attention", noting)
    torch.manual_seed(0)
    model = LimeXOR(8, r=3, layers=layers, form="fused").eval().to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 40, 8, generator=generator).to(DEVICE)
    context = torch.randn(2, 2, 8, generator=generator).to(DEVICE)
    events = Events(vectors=vectors, mask=draw_mask(generator, 2, 40))

    with torch.no_grad():
        fused = model.encode_history(events, context).links
        assert calls == [dict(form="fused")] * (layers - 1)
        model.form = "linear"
        linear = model.encode_history(events, context).links
        assert len(calls) == layers - 1
        events = Events(vectors.double(), events.mask)
        exact = model.double().encode_history(events, context.double()).links
    assert_close([fused], [linear], [exact])


# Fused link scoring.


@few
@given(
    b=st.integers(1, 2),
    m=st.sampled_from([0, 1, 127, 128, 200]),
    r=st.sampled_from([1, 5, 16, 17]),
    d=st.sampled_from([1, 16, 20]),
    table=st.sampled_from([torch.float32, torch.float16, torch.int8]),
    dtype=st.sampled_from(TYPES),
    seed=SEEDS,
)
def test_fuse_links_is_its_reference(b, m, r, d, table, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(9, r, generator=generator)
    scale = None
    if table == torch.int8:
        weights, scale = 50 * weights, torch.rand(9, generator=generator).to(DEVICE)
    weights = weights.to(table).to(DEVICE)
    items = torch.randint(0, 9, (b, m), generator=generator).to(DEVICE)
    links = torch.randn(b, r, d, generator=generator).to(DEVICE)

    def run(form, links):
        return [fuse_links(weights, items, links, scale=scale, form=form)]

    got, reference, exact = in_three_ways(run, dtype, links)
    assert_close(got, reference, exact)


def test_an_item_s_links_by_hand():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]], device=DEVICE)
    links = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], device=DEVICE)
    items = torch.tensor([[2, 0, 1, 0]], device=DEVICE)
    expected = torch.tensor([[[6.0, 8.0], [1.0, 2.0], [2.0, 3.0], [1.0, 2.0]]])
    for form in ("reference", "triton"):
        assert torch.equal(fuse_links(weights, items, links, form=form).cpu(), expected)


def test_a_row_that_holds_no_item_gives_nan_and_spoils_no_other():
    weights = torch.ones(3, 4, device=DEVICE)
    weights[1, 0] = float("nan")
    items = torch.tensor([[0, 1, 2]], device=DEVICE)
    links = torch.ones(1, 4, 2, device=DEVICE)
    got = fuse_links(weights, items, links, form="triton")[0, :, 0]
    assert got.isnan().tolist() == [False, True, False]


@interpreter
@pytest.mark.parametrize("table", [torch.float16, torch.int8])
def test_a_candidate_s_row_is_read_as_its_cost_says(traffic, table):
    """With no two candidates alike, so that no row is asked for twice."""
    b, m, r, d = 2, 130, 5, 3
    weights = torch.randn(b * m + 7, r).to(table)
    scale = torch.rand(len(weights)) if table == torch.int8 else None
    items = torch.randperm(len(weights))[: b * m].view(b, m)
    links = torch.randn(b, r, d)
    out = fuse_links(weights, items, links, scale=scale, form="triton")
    cost = fuse_links_cost(b, m, r, d, table, torch.float32)
    assert traffic.distinct() == cost.bytes
    assert cost.flops == count(torch.matmul, torch.empty(b, m, r), links).flops
    assert traffic.times(traffic.stores, out) == {1: out.numel()}
    assert not traffic.stores
    assert traffic.times(traffic.loads, items) == {1: b * m}
    assert traffic.times(traffic.loads, links) == {2: links.numel()}  # by two programs
    assert set(traffic.loads.values()) == {1}
    assert len(traffic.loads) == b * m * (r + (scale is not None))


# The candidate clock.


def candidate_inputs(seed, b, heads, m, n, dh):
    generator = torch.Generator().manual_seed(seed)
    q, *_ = draw_heads(generator, b, heads, m, dh, kinds=2)
    k, v = draw_heads(generator, b, heads, n, dh, kinds=2)
    mask = draw_mask(generator, b, n)
    mask[0] = seed % 3 > 0
    return q, k, v, mask, generator


CANDIDATES = st.fixed_dictionaries(
    dict(
        b=st.integers(1, 2),
        heads=st.integers(1, 2),
        m=st.sampled_from([0, 1, 5, 64, 70]),
        n=st.sampled_from([0, 1, 31, 64, 150]),
        dh=st.sampled_from([1, 16, 20]),
    )
)


@pytest.mark.parametrize("bias", ["none", "one row", "a row each", "a number each"])
@settings(max_examples=8)
@given(shape=CANDIDATES, seed=SEEDS, dtype=st.sampled_from(TYPES))
@example(shape=dict(b=2, heads=2, m=5, n=70, dh=4), seed=1, dtype=torch.float32)
def test_pointwise_candidates_are_their_reference(bias, shape, seed, dtype):
    """With a bias for all requests and heads or each, for each key or all, or none."""
    q, k, v, mask, generator = candidate_inputs(seed, **shape)
    n = mask.sum(-1) + 1
    b, heads, keys = shape["b"], shape["heads"], shape["n"]
    size = {
        "one row": (1, 1, 1, keys),
        "a row each": (b, heads, 1, keys),
        "a number each": (b, heads, 1, 1),
    }
    rows = []
    if bias in size:
        rows = [torch.randn(size[bias], generator=generator).to(DEVICE)]

    def run(form, q, k, v, *bias):
        bias = dict(bias=bias[0]) if bias else {}
        return [
            candidate_attention(q, k, v, mask, kind="pointwise", n=n, form=form, **bias)
        ]

    assert_close(*in_three_ways(run, dtype, q, k, v, *rows))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("form", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize("m, n", [(0, 5), (1, 0), (1, 1), (3, 300), (130, 129)])
@pytest.mark.parametrize("dtype", TYPES)
def test_softmax_candidates_are_their_reference(form, m, n, dtype):
    """Also where a whole block of 128 keys is padding, and where all keys are."""
    q, k, v, mask, _ = candidate_inputs(1, b=3, heads=2, m=m, n=n, dh=16)
    mask[1] = False
    mask[2, :140] = False

    def run(which, q, k, v):
        which = form if which == "triton" else "reference"
        return [candidate_attention(q, k, v, mask, kind="softmax", form=which)]

    got, reference, exact = in_three_ways(run, dtype, q, k, v)
    assert_close(got, reference, exact)
    assert (got[0][1] == 0).all() and (exact[0][1] == 0).all()


def test_the_reference_of_softmax_is_softmax_over_the_keys_that_are_there():
    q, k, v, mask, _ = candidate_inputs(1, b=2, heads=1, m=3, n=9, dh=4)
    got = candidate_attention(q, k, v, mask, kind="softmax", form="reference")
    for b in range(2):
        scores = q[b, 0] @ k[b, 0, mask[b]].T / 2
        torch.testing.assert_close(got[b, 0], scores.softmax(-1) @ v[b, 0, mask[b]])


def test_a_query_without_keys_reads_zero_whatever_pytorch_makes_of_it(monkeypatch):
    q, k, v, mask, _ = candidate_inputs(1, b=2, heads=1, m=3, n=9, dh=4)
    mask[0] = False
    nothing = partial(torch.full_like, fill_value=float("nan"))
    monkeypatch.setattr(candidates, "attend", lambda q, k, v, mask: nothing(q))
    got = candidate_attention(q, k, v, mask, kind="softmax", form="sdpa")
    assert (got[0] == 0).all() and got[1].isnan().all()


def test_flex_says_that_it_has_no_backward_pass():
    q, k, v, mask, _ = candidate_inputs(1, b=2, heads=1, m=3, n=9, dh=16)
    with pytest.raises(ValueError, match="no backward pass here: take 'sdpa'"):
        candidate_attention(q.requires_grad_(), k, v, mask, kind="softmax", form="flex")


def test_a_block_mask_asks_for_blocks_that_hold_a_key():
    mask = torch.zeros(3, 300, dtype=torch.bool, device=DEVICE)
    mask[0, :10] = mask[1, 280:] = mask[1, 5] = True
    blocks = candidates.block_mask(mask, 130)
    assert blocks.shape == (3, 1, 130, 300)
    assert blocks.kv_num_blocks.tolist() == [[[1, 1]], [[2, 2]], [[0, 0]]]
    assert blocks.kv_indices[0, 0, :, :1].tolist() == [[0], [0]]
    assert blocks.kv_indices[1, 0, :, :2].tolist() == [[0, 2], [0, 2]]


@interpreter
@pytest.mark.parametrize("n", [64, 150])
@pytest.mark.parametrize("dtype", TYPES)
def test_keys_are_read_once_for_each_block_of_candidates(traffic, n, dtype):
    b, heads, m, dh = 2, 2, 70, 4
    q, k, v, mask, generator = candidate_inputs(1, b, heads, m, n, dh)
    bias = torch.randn(b, heads, 1, n, generator=generator).to(dtype)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    kwargs = dict(kind="pointwise", n=mask.sum(-1) + 1, bias=bias, form="triton")
    candidate_attention(q, k, v, mask, **kwargs)
    cost = pointwise_cost(b, heads, m, n, dh, dtype.itemsize, bias=bias.numel())
    spans = -(-n // 64)
    # With several spans a second kernel adds their sums and writes the result.
    second = b * heads * m * dh * (4 * spans + dtype.itemsize) if spans > 1 else 0
    assert traffic.distinct() + second == cost.bytes + 4 * b  # the normalisers
    assert cost.flops == 2 * count(torch.matmul, q.float(), k.float().mT).flops
    assert set(traffic.stores.values()) == {1}
    blocks = -(-m // candidates_triton.BLOCK_M)
    assert traffic.times(traffic.loads, k, v) == {blocks: 2 * b * heads * n * dh}
    assert traffic.times(traffic.loads, q) == {spans: b * heads * m * dh}


# Which form runs.


def call_xor(form, dtype=torch.float32):
    links, events, mask = draw_tokens(0, b=1, heads=1, n=5, r=2, dh=4)
    links, events = ([x.to(dtype) for x in kind] for kind in (links, events))
    return xor_attend(links, events, mask, form=form)[1]


def call_links(form, dtype=torch.float32):
    links = torch.ones(1, 4, 3, dtype=dtype, device=DEVICE)
    items = torch.tensor([[1]], device=DEVICE)
    return fuse_links(torch.rand(2, 4, device=DEVICE), items, links, form=form)


def call_candidates(form, dtype=torch.float32):
    q, k, v, mask, _ = candidate_inputs(1, b=1, heads=1, m=2, n=5, dh=4)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    n = mask.sum(-1)
    return candidate_attention(q, k, v, mask, kind="pointwise", n=n, form=form)


CALLS = [call_xor, call_links, call_candidates]
every_kernel = pytest.mark.parametrize("call", CALLS)


@pytest.fixture
def launches(monkeypatch):
    """The kernels that were launched."""
    seen = []
    for module in (xor_triton, links_triton, candidates_triton):
        launch = "_launch" if module is xor_triton else "launch"
        real = getattr(module, launch)

        def noting(*args, real=real, module=module, **options):
            seen.append(module.__name__)
            return real(*args, **options)

        monkeypatch.setattr(module, launch, noting)
    return seen


@every_kernel
def test_auto_is_the_kernel_on_a_gpu_and_the_reference_elsewhere(call, launches):
    torch.manual_seed(0)
    call("auto")
    assert len(launches) == CUDA
    call("reference")
    assert len(launches) == CUDA
    call("triton")
    assert len(launches) == CUDA + 1


def test_who_counts_operations_sees_the_reference():
    """A counter sees no Triton kernel, so that `count` asks for none to be taken."""
    on_a_gpu = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    taken = []
    count(lambda: taken.append(takes_triton("auto", on_a_gpu)))
    taken.append(takes_triton("auto", on_a_gpu))
    assert taken == [False, True]


@every_kernel
def test_a_form_that_is_none_is_named(call):
    with pytest.raises(ValueError, match="form is 'fast'; it must be one of auto, ref"):
        call("fast")


@every_kernel
def test_why_the_kernel_cannot_run_is_said(call, monkeypatch, launches):
    with pytest.raises(ValueError, match=r"one of float32, .* not torch\.float64"):
        call("triton", torch.float64)
    assert call("auto", torch.float64).dtype == torch.float64
    with monkeypatch.context() as patch:
        patch.setattr(forms, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="triton is not installed"):
            call("triton")
        call("auto")
    if not CUDA:
        with pytest.raises(ValueError, match="interpreter multiplies bfloat16 wrongly"):
            call("triton", torch.bfloat16)
        with monkeypatch.context() as patch:
            patch.delenv("TRITON_INTERPRET")
            with pytest.raises(
                ValueError, match="not all tensors are on a GPU, and TR"
            ):
                call("triton")
            call("auto")
    assert not launches


def test_links_that_do_not_fit_on_chip_are_left_to_the_reference(launches):
    """A tile of 64 x 32 numbers: 8 KiB in float32, and in 16 bits half of that."""
    links, events, mask = draw_tokens(0, b=1, heads=1, n=2, r=33, dh=20)
    xor_attend(links, events, mask)
    with pytest.raises(ValueError, match="r = 33 links of dh = 20 do not fit on chip"):
        xor_attend(links, events, mask, form="triton")
    assert not launches
    links, events = ([x.half() for x in kind] for kind in (links, events))
    xor_attend(links, events, mask, form="triton")


@pytest.mark.parametrize("asks", [0, 1])
@pytest.mark.parametrize("kernel", ["links", "candidates"])
def test_a_kernel_without_a_backward_pass_drops_no_gradient(kernel, asks, launches):
    q, k, v, mask, _ = candidate_inputs(1, b=1, heads=1, m=2, n=5, dh=4)
    weights, links = torch.rand(2, 4, device=DEVICE), torch.rand(1, 4, 3, device=DEVICE)
    inputs = [(weights, links), (q, torch.rand(1, 1, 1, 5, device=DEVICE))]
    first, second = inputs[kernel == "candidates"]
    leaf = (first, second)[asks].requires_grad_()

    def run(form):
        if kernel == "links":
            items = torch.tensor([[1]], device=DEVICE)
            return fuse_links(weights, items, links, form=form)
        kwargs = dict(kind="pointwise", n=mask.sum(-1), bias=second, form=form)
        return candidate_attention(first, k, v, mask, **kwargs)

    with pytest.raises(ValueError, match="no backward pass, and a gradient is asked"):
        run("triton")
    run("auto").sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert not launches
    with torch.no_grad():
        run("triton")
    assert launches


def test_what_belongs_to_the_other_kind_is_refused():
    q, k, v, mask, _ = candidate_inputs(1, b=1, heads=1, m=2, n=5, dh=4)
    n, bias = mask.sum(-1), torch.zeros(5)
    for extra in (dict(n=n), dict(bias=bias)):
        with pytest.raises(ValueError, match="n and bias belong to pointwise"):
            candidate_attention(q, k, v, mask, kind="softmax", **extra)
    with pytest.raises(ValueError, match="needs its normaliser"):
        candidate_attention(q, k, v, mask, kind="pointwise", bias=bias)
    with pytest.raises(ValueError, match="softmax attention has no form 'triton'"):
        candidate_attention(q, k, v, mask, kind="softmax", form="triton")
    with pytest.raises(ValueError, match="form is 'sdpa'; it must be one of"):
        candidate_attention(q, k, v, mask, kind="pointwise", n=n, form="sdpa")


def python(*code, **environment):
    """What code prints in a Python of its own, without the interpreter."""
    names = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(code)]
    done = subprocess.run(
        command, env=names | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton_everything_but_the_kernels_works():
    python("""
import sys
sys.modules["triton"] = None  # an import of it fails
import torch
from recsys_edu.attention.kernels import fuse_links
items, links = torch.tensor([[1]]), torch.ones(1, 4, 3)
assert fuse_links(torch.ones(2, 4), items, links).tolist() == [[[4.0] * 3]]
""")


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from recsys_edu.attention.kernels import candidates_triton, links_triton, xor_triton

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
TYPES = {"mask": "*i1", "items": "*i64", "scale": "fp32"}
TYPES |= {"normaliser": "*fp32", "count": "*fp32"}
TENSORS = {"read", "weights", "links", "out", "queries", "keys", "values", "bias"}

def kind(name, type):
    if name.endswith("sums"):
        return "*fp32"
    tensor = name in TENSORS or name.endswith(("_links", "_events"))
    return TYPES.get(name, "*" + type if tensor else "i32")

def shared_memory(kernel, type, card, warps, **constants):
    precision = "ieee" if card < 80 else "tf32x3"
    constants |= dict(DH=32, D=32, PRECISION=precision, SPAN=512)
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    types = {name: kind(name, type) for name in kernel.arg_names}
    if kernel is links_triton.fuse_links_kernel:
        types["scale"] = "*fp32"  # of rows, where elsewhere it is of scores
    types |= dict.fromkeys(constants, "constexpr")
    options = dict(num_warps=warps, num_stages=2, enable_fp_fusion=True)
    target = GPUTarget("cuda", card, 32)
    return compile(ASTSource(kernel, types, constants), target, options).metadata.shared

def xor(kernel, type, card, **constants):
    block = xor_triton.BLOCK_BYTES // WIDTHS[type]
    return shared_memory(kernel, type, card, 2, R=32, BLOCK=block, **constants)

def links(type, card, **constants):
    sizes = dict(WIDTH=32, R=32, DIM=64, BLOCK=links_triton.BLOCK) | constants
    return shared_memory(links_triton.fuse_links_kernel, type, card, 4, **sizes)

def pointwise(type, card, **constants):
    sizes = {name: getattr(candidates_triton, name) for name in ("BLOCK_M", "BLOCK_N")}
    kernel = candidates_triton.pointwise_forward
    return shared_memory(kernel, type, card, 4, **sizes, **constants)

def add(card, **constants):
    return shared_memory(xor_triton.add_spans, "fp32", card, 4, **constants)

forward, backward = xor_triton.xor_forward, xor_triton.xor_backward
"""


# Each kernel in one type, and in the other with what is None or 1 besides: Triton takes
# an argument that is 1 for a constant.
KERNELS = [
    "xor(backward, 'bf16', 90)",
    "xor(forward, 'fp32', 90, n=1, r=1, heads=1, spans=1, events_t=1)",
    "add(90, WIDTH=1024, BLOCK=256, SPANS=16)",
    "links('fp32', 90, scale=None, m=1, rows=1, blocks=1)",
    "links('fp16', 75)",
    "pointwise('bf16', 90)",
    "pointwise('fp32', 90, bias=None, n=1, m=1, heads=1, spans=1, batch=1)",
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Bytes of shared memory of each of ``KERNELS``, or why it does not compile."""
    cache = tmp_path_factory.mktemp("triton")
    return python(
        COMPILE,
        f"for kernel in {KERNELS}:",
        "    try: print(eval(kernel))",
        "    except Exception as error: print(repr(error))",
        TRITON_CACHE_DIR=str(cache),
    ).splitlines()


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_compile_for_a_card_that_is_not_there(compiled, kernel):
    """And their programs fit into its shared memory: 227 KiB of an H100, 64 of a T4."""
    said = compiled[KERNELS.index(kernel)]
    assert said.isdigit(), said
    assert int(said) <= (64 if "75" in kernel else 227) * 1024
