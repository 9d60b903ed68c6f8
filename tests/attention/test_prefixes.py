"""Many prefixes at once are each prefix by itself, at the price of a scan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.attention.pointwise import attend_pointwise
from recsys_edu.attention.prefixes import (
    add_prefixes,
    attend_prefixes,
    rows,
    runs,
    sum_prefixes,
)
from recsys_edu.attention.softmax import attend
from recsys_edu.cost import count

SEEDS = st.integers(0, 999)
SHAPES = st.fixed_dictionaries(
    dict(
        b=st.integers(1, 3),
        n=st.integers(1, 20),
        m=st.integers(1, 5),
        r=st.integers(1, 3),
    )
)


def one_by_one(form, q, k, v, seen):
    """[B, heads, M r, dh], each of the M prefixes a call of its own."""
    rows = []
    for b, ends in enumerate(seen.tolist()):
        row = slice(b, b + 1)
        parts = [form(q[row], k[row, :, :n], v[row, :, :n]) for n in ends]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)


def shares(q, k):
    """A softmax over the queries, as in LimeSum: each key's weights are its own."""
    return (q @ k.transpose(-1, -2)).softmax(-2)


FORMS = {
    "softmax": (attend_prefixes, attend),
    "sum": (sum_prefixes, lambda q, k, v: attend_pointwise(q, k, v, None, 1)),
    "shares": (
        lambda q, k, v, seen: add_prefixes(shares(q, k), v, seen),
        lambda q, k, v: shares(q, k) @ v,
    ),
}
each = pytest.mark.parametrize("kind", FORMS)


def draw(seed, b, n, m, r, *, kind="sum", dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(b, 2, t, 4, generator=generator, dtype=dtype) for t in (r, n, n)
    )
    first = int(kind == "softmax")  # of nothing there is no softmax
    return q, k, v, torch.randint(first, n + 1, (b, m), generator=generator)


@each
@settings(max_examples=40)
@given(shape=SHAPES, seed=SEEDS)
def test_a_prefix_among_others_is_the_prefix_alone(kind, shape, seed):
    """And its gradients; ends in a chunk, between two, and at the last key."""
    *tensors, seen = draw(seed, **shape, kind=kind)
    seen[0, 0] = shape["n"]
    for tensor in tensors:
        tensor.requires_grad_()
    fast, slow = FORMS[kind]
    got, expected = fast(*tensors, seen), one_by_one(slow, *tensors, seen)
    torch.testing.assert_close(got, expected)
    weights = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    parts = (torch.autograd.grad(x, tensors, weights) for x in (got, expected))
    for gradient, exact in zip(*parts, strict=True):
        torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("loud", [1e2, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_later_score_however_large_drowns_no_earlier_prefix(loud, dtype):
    """From e^104 on, a sum that is scaled by its last maximum is 0 / 0 before it."""
    q, k, v, _ = draw(0, b=1, n=17, m=1, r=1, dtype=dtype)
    q, k = (
        torch.ones_like(q),
        torch.linspace(0, loud, 17, dtype=dtype).view(1, 1, 17, 1),
    )
    k = k.expand(1, 2, 17, 4).clone().requires_grad_()
    seen = torch.arange(1, 18)[None]
    got = attend_prefixes(q, k, v, seen)
    torch.testing.assert_close(got, one_by_one(attend, q, k, v, seen))
    assert torch.autograd.grad(got.sum(), k)[0].isfinite().all()


@each
def test_what_stands_behind_a_prefix_is_not_read(kind):
    """However large, if it is finite: padding is."""
    q, k, v, _ = draw(1, b=2, n=11, m=3, r=2)
    seen = torch.tensor([[1, 4, 7], [2, 3, 7]])
    before = FORMS[kind][0](q, k, v, seen)
    k[:, :, 7:], v[:, :, 7:] = 1e4, -1e4
    assert torch.equal(FORMS[kind][0](q, k, v, seen), before)


def test_a_sum_over_nothing_is_zero_and_there_may_be_no_key_at_all():
    q, k, v, _ = draw(1, b=2, n=5, m=3, r=2)
    none = torch.zeros(2, 3, dtype=torch.int64)
    assert (sum_prefixes(q, k, v, none) == 0).all()
    got = sum_prefixes(q, k[:, :, :0], v[:, :, :0], none)
    assert got.shape == (2, 2, 6, 4) and (got == 0).all()


@each
def test_the_price_of_a_prefix_more_is_the_root_of_the_history(kind):
    """A prefix takes at most N / C + C keys, with C = 2 sqrt(N): 80 of 1,024."""
    n, r, d = 1024, 3, 8

    def flops(m):
        q, k, v, seen = draw(0, b=1, n=n, m=m, r=r, kind=kind)
        return count(FORMS[kind][0], q, k, v, seen).flops

    more = (flops(65) - flops(1)) / 64
    assert more <= 2 * 80 * r * d
    assert flops(1) - more <= 2 * 2 * n * r * d  # the scan itself: scores and chunks


@given(
    st.integers(1, 6).flatmap(
        lambda m: st.lists(
            st.lists(st.integers(0, 2), min_size=m, max_size=m), min_size=1, max_size=3
        )
    )
)
def test_runs_give_each_reader_what_it_sees(drawn):
    """In any order; as many as the row that has most of them."""
    seen = torch.tensor(drawn)
    most = 1 + (seen[:, 1:] != seen[:, :-1]).sum(1).max()
    found = runs(seen)
    assert (found is None) == (most == seen.shape[1])
    if found is not None:
        values, row = found
        assert values.shape == (len(seen), most) and torch.equal(
            rows(values, row), seen
        )


def test_of_no_reader_there_are_no_runs():
    assert runs(torch.zeros(2, 0, dtype=torch.int64)) is None
