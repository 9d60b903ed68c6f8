"""STCA: its formula, that its history grows by concatenation, and which clock pays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.artefact import load_ranker, save_ranker
from recsys_edu.cost import count
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.stca import STCA, SwiGLU


def events_of(n, d=8, b=2):
    generator = torch.Generator().manual_seed(n)
    vectors = torch.randn(b, n, d, generator=generator, dtype=torch.float64)
    return Events(vectors, torch.ones(b, n, dtype=torch.bool))


def part_of(events, part):
    return Events(events.vectors[:, part], events.mask[:, part])


def swiglu(layer, x):
    gate, value = (x @ layer.gate_value.weight.T + layer.gate_value.bias).chunk(2, -1)
    return layer.out(gate / (1 + (-gate).exp()) * value)


def test_swiglu_is_its_formula():
    layer, x = SwiGLU(3, 4).double(), torch.randn(2, 3).double()
    assert layer.gate_value.weight.shape == (16, 3) and layer(x).shape == (2, 4)
    torch.testing.assert_close(layer(x), swiglu(layer, x))


@pytest.mark.parametrize("layers, heads", [(1, 1), (3, 2)])
def test_it_is_its_formula(layers, heads):
    """One candidate and one head at a time, the keys of the events written out."""
    model = STCA(8, layers=layers, heads=heads).double().eval()
    events, items = events_of(4, b=1), torch.randn(3, 8).double()
    got = model(events, None, items[None])
    tokens = torch.cat([model.start[None], events.vectors[0]])
    for m, item in enumerate(items):
        query, known = item, [item]
        for i in range(layers):
            attention = model.attention[i]
            h = attention.norm_key(swiglu(model.event[i], model.norm_event(tokens)))
            k, v = attention.key_value(h).chunk(2, dim=-1)
            q = attention.query(attention.norm_query(query))
            read = []
            for head in range(heads):
                part = slice(head * 8 // heads, (head + 1) * 8 // heads)
                scores = k[:, part] @ q[part] * (8 / heads) ** -0.5
                read.append(scores.softmax(0) @ v[:, part])
            known.append(attention.out(torch.cat(read)))
            query = swiglu(model.query[i], model.join[i](torch.cat(known)))
        torch.testing.assert_close(got[0, m], model.norm(query))


@settings(max_examples=10)
@given(old=st.integers(0, 5), new=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_history_that_grew_is_the_history_at_once(old, new):
    model, events = STCA(8, layers=3).double().eval(), events_of(old + sum(new))
    code, end = model.encode_history(part_of(events, slice(old)), None), old
    for more in new:
        kept = code.k.clone(), code.v.clone()
        part = part_of(events, slice(end, end + more))
        longer = model.extend(code, part, None)
        assert torch.equal(code.k, kept[0]) and torch.equal(code.v, kept[1])
        code, end = longer, end + more
    whole = model.encode_history(events, None)
    torch.testing.assert_close(code.k, whole.k)
    torch.testing.assert_close(code.v, whole.v)
    assert torch.equal(code.mask, whole.mask)


@torch.no_grad()
def test_small_event_vectors_are_heard_as_large_ones_are():
    """SwiGLU is quadratic, and its norm would round 10^-2 squared down to its eps."""
    model, events, items = STCA(8).double().eval(), events_of(5), torch.randn(2, 3, 8)
    small, others = (
        Events(vectors, events.mask)
        for vectors in (events.vectors * 2e-2, events.vectors.flip(-1))
    )
    h, h_small, h_others = (
        model(e, None, items.double()) for e in (events, small, others)
    )
    assert (h_small - h).abs().max() < 0.1 * (h_others - h).abs().max()


def test_the_request_clock_is_linear_and_the_candidate_s_reads_each_event_once():
    model, d, layers, m = STCA(8, layers=3).eval(), 8, 3, 5
    items = torch.randn(1, m, d)

    def flops(n):
        events = events_of(n, b=1).map(lambda t: t.float() if t.dim() == 3 else t)
        code = model.encode_history(events, None)
        encode = count(model.encode_history, events, None).flops
        return encode, count(model.fuse, items, code).flops

    none, some, more = flops(0), flops(40), flops(80)
    assert more[0] - some[0] == some[0] - none[0] == 40 * layers * 2 * 8 * d * d
    assert more[1] - some[1] == some[1] - none[1] == 40 * layers * 2 * 2 * m * d


@torch.no_grad()
def test_what_is_loaded_scores_to_the_bit(make_model, draw_request, tmp_path):
    model, request = make_model("STCA"), draw_request(0, 3, 5, 4)
    save_ranker(model, tmp_path / "ranker.safetensors")
    again = load_ranker(tmp_path / "ranker.safetensors")
    assert torch.equal(again(request), model(request))
    assert again.encoder.config == model.encoder.config
