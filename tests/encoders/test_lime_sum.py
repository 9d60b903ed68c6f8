"""LimeSum: its formula, and that its code extends, forgets, and has prefixes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.artefact import load_ranker, save_ranker
from recsys_edu.cost import count
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.lime_sum import LimeSum

B, D, R = 2, 8, 3
USER = torch.randn(B, 2, D, generator=torch.Generator().manual_seed(1)).double()
TYPES = [torch.float64, torch.float32]


def made(dtype=torch.float64):
    torch.manual_seed(0)
    model = LimeSum(D, r=R).eval()
    for weight in model.parameters():  # large enough for all parts to be heard
        torch.nn.init.normal_(weight, std=0.3)
    return model.to(dtype).requires_grad_(False)


def events_of(n, dtype=torch.float64, b=B):
    generator = torch.Generator().manual_seed(n)
    vectors = torch.randn(b, n, D, generator=generator).to(dtype)
    return Events(vectors, torch.ones(b, n, dtype=torch.bool))


def part_of(events, part):
    return Events(events.vectors[:, part], events.mask[:, part])


def assert_same_code(model, got, whole, events):
    """The sums to a derived budget, the count exactly, and the links made of them.

    Both are of at most 1 + n terms a v, with a <= 1. A term is off by 64 roundings of
    the largest v, one for each operation on the longest path from its event; a sum of T
    terms, however it is taken, by T roundings of all of them, which are T v at most.
    """
    user = USER.to(got.total.dtype)
    tokens = torch.cat([model.start.expand(B, 1, D), events.vectors], dim=1)
    largest = model.attention.keys_values(tokens)[1].abs().max()
    terms, rounding = tokens.shape[1], torch.finfo(got.total.dtype).eps / 2
    budget = 2 * terms * (terms + 64) * rounding * largest
    assert (got.total - whole.total).abs().max() <= budget
    assert torch.equal(got.count, whole.count)
    again = model._links(model.contextual(user), got.total, got.count)
    assert torch.equal(got.links, again)


@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_its_formula(heads):
    """One link, one head and one event at a time; a masked event has no part."""
    model = LimeSum(D, r=R, heads=heads).double().eval()
    events = events_of(4, b=1)
    events.mask[0, -1] = False
    got = model.encode_history(events, USER[:1]).links
    links, attention = model.contextual(USER[:1])[0], model.attention
    q = attention.query(attention.norm_query(links)).view(R, heads, -1)
    tokens = torch.cat([model.start[None], events.vectors[0, :3]])
    both = attention.key_value(attention.norm_key(tokens)).view(4, 2, heads, -1)
    read = torch.zeros(R, heads, D // heads, dtype=torch.float64)
    for head in range(heads):
        for k, v in both[:, :, head]:
            scores = torch.stack([q[i, head] @ k for i in range(R)])
            weights = (scores / (D / heads) ** 0.5).softmax(0)
            for i in range(R):
                read[i, head] += weights[i] * v
    update = attention.out(read.flatten(1) * R / 4)
    torch.testing.assert_close(got[0, 0], model.norm(links + update))


def test_what_the_links_have_to_divide_by_is_on_average_the_normaliser():
    """Of each head, the weights of 1 + N events add up to 1 + N over the links."""
    model, events = made(), events_of(6)
    weights, _ = model._weights_values(model.contextual(USER), events.vectors)
    mass = weights.sum(-1)  # [B, heads, R]
    torch.testing.assert_close(mass.mean(-1), torch.full_like(mass[..., 0], 6 / R))


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=10)
@given(old=st.integers(0, 9), new=st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_a_history_that_grew_is_the_history_at_once(dtype, old, new):
    model, user = made(dtype), USER.to(dtype)
    events, end = events_of(old + sum(new), dtype), old
    code = model.encode_history(part_of(events, slice(old)), user)
    for more in new:
        part = part_of(events, slice(end, end + more))
        before = code.total.clone()
        grown = model.extend(code, part, user)
        assert torch.equal(code.total, before)
        code, end = grown, end + more
    assert_same_code(model, code, model.encode_history(events, user), events)


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=15)
@given(kept=st.lists(st.booleans(), max_size=12), parts=st.integers(1, 3))
def test_a_history_that_forgot_is_the_history_without(dtype, kept, parts):
    """Any events, in several goes; all of them too, and none."""
    model, user = made(dtype), USER.to(dtype)
    events, keep = events_of(len(kept), dtype), torch.tensor(kept, dtype=torch.bool)
    code = model.encode_history(events, user)
    for old in (~keep).nonzero().flatten().chunk(parts):
        before = code.total.clone()
        forgot = model.forget(code, part_of(events, old), user)
        assert torch.equal(code.total, before)
        code = forgot
    rest = model.encode_history(part_of(events, keep), user)
    assert_same_code(model, code, rest, events)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_window_may_move_along_a_history(dtype):
    """One event in and one out, a hundred times: the window, encoded at once.

    Each step takes one rounding of the window's sum for each of the two.
    """
    model, user, window = made(dtype), USER.to(dtype), 8
    events = events_of(window + 100, dtype)
    code = model.encode_history(part_of(events, slice(window)), user)
    for end in range(window, window + 100):
        code = model.extend(code, part_of(events, slice(end, end + 1)), user)
        old = part_of(events, slice(end - window, end - window + 1))
        code = model.forget(code, old, user)
    rest = model.encode_history(part_of(events, slice(100, None)), user)
    assert_same_code(model, code, rest, events)


def test_padding_is_not_forgotten():
    model, events = made(), events_of(5)
    old = Events(events.vectors[:, :3], torch.tensor([[1, 1, 0], [1, 1, 0]]).bool())
    code = model.encode_history(events, USER)
    got, expected = (
        model.forget(code, part, USER) for part in (old, part_of(events, slice(2)))
    )
    assert_same_code(model, got, expected, events)


def test_an_event_more_or_less_costs_the_same_after_any_history():
    model, one = made(), events_of(1)
    costs = []
    for n in (0, 7, 60):
        code = model.encode_history(events_of(n), USER)
        costs += [count(f, code, one, USER) for f in (model.extend, model.forget)]
    assert len({cost.flops for cost in costs}) == 1


def test_the_sum_of_a_model_in_16_bits_is_in_32():
    """4,096 events of one value: in bfloat16 the sum would stop growing at 256."""
    model, n = made().to(torch.bfloat16), 4096
    vectors = torch.ones(B, n, D).bfloat16() * torch.arange(D).bfloat16()
    events = Events(vectors, torch.ones(B, n, dtype=torch.bool))
    user = USER.bfloat16()
    code = model.encode_history(events, user)
    assert code.total.dtype == torch.float32 and code.links.dtype == torch.bfloat16
    start = model.encode_history(part_of(events, slice(0)), user).total
    one = model.encode_history(part_of(events, slice(1)), user).total - start
    # Rounding n terms in float32, and the one as a difference.
    budget = 2 * n * (n * 2**-24) * (one.abs().max() + start.abs().max())
    assert (code.total - start - n * one).abs().max() <= budget


@torch.no_grad()
def test_what_is_loaded_scores_to_the_bit(make_model, draw_request, tmp_path):
    model, request = make_model("LIME-sum"), draw_request(0, 3, 5, 4)
    save_ranker(model, tmp_path / "ranker.safetensors")
    again = load_ranker(tmp_path / "ranker.safetensors")
    assert torch.equal(again(request), model(request))
    assert again.encoder.config == model.encoder.config
