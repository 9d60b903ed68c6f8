"""Append fusion's fast form: no mask where padding is at the end, and none of N x N."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.two_tower import TwoTower


@pytest.fixture
def asked(monkeypatch):
    """What PyTorch's attention was asked for: the mask's shape, and causal or not."""
    seen, real = [], F.scaled_dot_product_attention

    def noting(q, k, v, attn_mask=None, is_causal=False):
        seen.append((None if attn_mask is None else list(attn_mask.shape), is_causal))
        return real(q, k, v, attn_mask=attn_mask, is_causal=is_causal)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    return seen


def events_of(*lengths):
    """Histories of these lengths, padded to the longest."""
    n = max(lengths)
    generator = torch.Generator().manual_seed(n)
    vectors = torch.randn(len(lengths), n, 8, generator=generator)
    return Events(vectors, torch.arange(n) < torch.tensor(lengths)[:, None])


def part_of(events, part):
    return Events(events.vectors[:, part], events.mask[:, part])


@pytest.mark.parametrize("encoder", [AppendEncoder, TwoTower])
def test_a_causal_history_has_no_mask(asked, encoder):
    model = encoder(8, layers=3).eval()
    model.encode_history(events_of(5, 2), None)
    layers = 3 if encoder is TwoTower else 2  # append keeps the last one's keys alone
    assert asked == layers * [(None, True)]


def test_a_bidirectional_history_has_a_row_of_keys(asked):
    AppendEncoder(8, layers=3, causal=False).eval().encode_history(
        events_of(5, 2), None
    )
    assert asked == 2 * [([2, 1, 1, 6], False)]


@pytest.mark.parametrize("new, mask", [(1, None), (3, [3, 4 + 3])])
def test_new_events_are_masked_among_themselves_alone(asked, new, mask):
    model, events = AppendEncoder(8, layers=3).eval(), events_of(3 + new)
    code = model.encode_history(part_of(events, slice(3)), None)
    asked.clear()
    model.extend(code, part_of(events, slice(3, None)), None)
    assert asked == 2 * [(mask, False)]


@settings(max_examples=15)
@given(old=st.integers(0, 5), new=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_history_that_grew_is_the_history_at_once(old, new):
    model = AppendEncoder(8, layers=3).double().eval()
    events = events_of(old + sum(new)).map(
        lambda x: x.double() if x.is_floating_point() else x
    )
    code, end = model.encode_history(part_of(events, slice(old)), None), old
    for more in new:
        part = part_of(events, slice(end, end + more))
        code, end = model.extend(code, part, None), end + more
    whole = model.encode_history(events, None)
    torch.testing.assert_close(code.k, whole.k)
    torch.testing.assert_close(code.v, whole.v)
    assert torch.equal(code.mask, whole.mask)


@torch.no_grad()
def test_nothing_as_large_as_n_squared_is_made():
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            leaves = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            sizes.extend(x.numel() for x in leaves)
            return out

    model, events = AppendEncoder(8, layers=2, reads_itself=True).eval(), events_of(512)
    with Watch():
        code = model.encode_history(part_of(events, slice(500)), None)
        code = model.extend(code, part_of(events, slice(500, None)), None)
        model.fuse(torch.randn(1, 512, 8), code)
    assert max(sizes) == 512 * 4 * 8  # the hidden layer of the feed-forward part
