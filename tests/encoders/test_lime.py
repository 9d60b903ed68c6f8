"""LIME: its formulas, what may grow and what may not, and which clock pays.

What every encoder promises is held in test_encoders.py and test_scoring.py, the XOR
block in test_xor.py.
"""

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recsys_edu.attention.softmax import attend, attend_lse, merge
from recsys_edu.attention.xor import read_links, xor_attention
from recsys_edu.cost import count
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.lime import PHI, LimeMHA, LimeXOR

GROWING = ["LIME-MHA", "LIME-XOR, one block"]
LIME = [*GROWING, "LIME-XOR, two blocks", "LIME-XOR"]
LAYERS = {"LIME-XOR, one block": 1, "LIME-XOR, two blocks": 2, "LIME-XOR": 3}

few = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 999)
every_lime = pytest.mark.parametrize("name", LIME)


def encode(model, history, user, since=0):
    vectors = model.embeddings.events(history, since)
    events = Events(vectors=vectors, mask=history.mask[:, since:])
    return events, model.embeddings.users(user)


# The formulas.


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("qk", [None, 2, 16])
def test_an_item_s_weights_are_phi_of_its_product_with_the_raw_links(phi, qk):
    encoder, items = LimeMHA(8, r=3, qk=qk, phi=phi), torch.randn(2, 5, 8)
    got = encoder.encode_items(items)
    assert got.shape == (2, 5, 3)
    for b in range(2):
        for m in range(5):
            query = encoder.item_query(encoder.norm_item(items[b, m]))
            scores = [
                query @ encoder.link_key(link) / (qk or 8) ** 0.5
                for link in encoder.links
            ]
            torch.testing.assert_close(got[b, m], PHI[phi](torch.stack(scores)))


def test_phi_s_formulas():
    scores = torch.tensor([1.0, 0.0, -2.0])
    assert torch.equal(PHI["identity"](scores), scores)
    torch.testing.assert_close(PHI["silu"](scores), scores / (1 + (-scores).exp()))
    torch.testing.assert_close(
        PHI["softmax"](scores), scores.exp() / scores.exp().sum()
    )
    with pytest.raises(ValueError, match="phi is 'relu'; it must be one of softmax, s"):
        LimeMHA(8, r=3, phi="relu")


@every_lime
def test_an_item_s_weights_know_no_user(ranker, draw_request, name):
    """Gradients reach the raw links, and not the MLP or what reads the events."""
    encoder = ranker(name).float64.encoder
    items = torch.randn(4, 8, dtype=torch.float64)
    weights = dict(encoder.named_parameters())
    parts = torch.autograd.grad(
        encoder.encode_items(items).square().sum(),
        list(weights.values()),
        allow_unused=True,
    )
    used = {key for key, part in zip(weights, parts, strict=True) if part is not None}
    assert used == {
        "links",
        "norm_item.weight",
        "norm_item.bias",
        "item_query.weight",
        "link_key.weight",
    }


def test_contextual_links_are_the_links_and_an_mlp_of_link_and_user(ranker):
    encoder, context = ranker("LIME-MHA").float64.encoder, torch.randn(2, 3, 8).double()
    got = encoder.contextual(context)
    for b in range(2):
        for i, link in enumerate(encoder.links):
            hidden = encoder.link_hidden(link) + encoder.user_hidden(context[b].sum(0))
            shift = encoder.link_shift(torch.nn.functional.silu(hidden))
            torch.testing.assert_close(got[b, i], link + shift)


def test_mha_links_are_the_links_after_one_attention(ranker):
    """By PyTorch's own attention, over the start and the events that are there."""
    encoder = ranker("LIME-MHA").float64.encoder
    events, context = torch.randn(1, 5, 8).double(), torch.randn(1, 2, 8).double()
    mask = torch.tensor([[False, True, True, False, True]])
    links = encoder.contextual(context)
    tokens = torch.cat([encoder.start.view(1, 1, 8), events[:, mask[0]]], dim=1)
    attention = encoder.attention
    read = attend(attention.queries(links), *attention.keys_values(tokens))
    expected = encoder.norm(links + attention.update(read))
    got = encoder.encode_history(Events(vectors=events, mask=mask), context)
    torch.testing.assert_close(got.links, expected[:, None])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("n", [0, 1, 6])
def test_xor_links_are_the_links_after_blocks_under_the_dense_mask(
    ranker, draw_request, assert_same, name, n
):
    request = draw_request(n, b=3, n=n, m=1)

    def dense(model):
        events, context = encode(model, request.history, request.user)
        links, x = model.encoder.contextual(context), events.vectors
        for block in model.encoder.blocks:
            links, x = xor_attention(block, links, x, events.mask, form="dense")
        return model.encoder.norm(links).unsqueeze(1)

    def encoded(model):
        return model.encoder.encode_history(
            *encode(model, request.history, request.user)
        ).links

    assert len(ranker(name).float32.encoder.blocks) == LAYERS[name]
    assert_same(encoded, dense, ranker(name))


@every_lime
def test_a_candidate_gets_the_weighted_sum_of_the_links(ranker, draw_request, name):
    model, request = ranker(name).float64, draw_request(1, b=2, n=5, m=3)
    code = model.encode_request(request).code
    weights = model.encode_items(request.candidates).code
    got = model.encoder.fuse(weights, code)
    for b in range(2):
        for m in range(3):
            links = zip(weights[b, m], code.links[b, 0], strict=True)
            torch.testing.assert_close(got[b, m], sum(w * link for w, link in links))


# Histories that grow.


@few
@given(
    keys=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    loud=st.sampled_from([1.0, 1e3]),
    seed=SEEDS,
)
def test_attention_in_parts_is_attention_at_once(keys, loud, seed):
    """Scores in the thousands too, where exponentials by themselves overflow."""
    generator = torch.Generator().manual_seed(seed)

    def draw(t):
        return torch.randn(2, 2, t, 4, generator=generator, dtype=torch.float64)

    q, k, v = loud * draw(3), draw(sum(keys)), draw(sum(keys))
    parts = zip(k.split(keys, dim=2), v.split(keys, dim=2), strict=True)
    states = [attend_lse(q, *part) for part in parts]
    state = states[0]
    for more in states[1:]:
        state = merge(*state, *more)
    whole = attend_lse(q, k, v)
    # An exponent is off by a rounding or two of the scores it is a difference of.
    roundings = 64 * 2**-53 * whole[1].abs().max().clamp(min=1) * len(keys)
    for part, expected in zip(state, whole, strict=True):
        assert part.isfinite().all()
        assert (part - expected).abs().max() <= roundings * v.abs().max().clamp(min=1)
    torch.testing.assert_close(whole[0], attend(q, k, v))


@pytest.mark.parametrize("name", GROWING)
def test_an_event_more_costs_the_same_after_any_history(ranker, draw_request, name):
    model = ranker(name).float32
    costs = []
    for n in (0, 7, 60):
        request = draw_request(0, b=1, n=n + 1, m=1, full=True)
        old = request.history.map(lambda t, n=n: t[:, :n])
        code = model.encoder.encode_history(*encode(model, old, request.user))
        new = encode(model, request.history, request.user, n)
        costs.append(count(model.encoder.extend, code, *new))
    assert costs[0] == costs[1] == costs[2]


def test_who_has_read_whom_in_xor_blocks(ranker, draw_request):
    """Why one block extends, two have prefixes, three neither: what one event moves.

    Before block 2 no old event has moved, but the links have: a new event changes how
    they read every old one. Before block 3 the old events have moved too.
    """
    model = ranker("LIME-XOR").float64
    request = draw_request(0, b=1, n=6, m=1, full=True)

    def states(n):
        history = request.history.map(lambda t: t[:, :n])
        events, context = encode(model, history, request.user)
        links, x = model.encoder.contextual(context), events.vectors
        for block in model.encoder.blocks:
            yield links, x
            links, x = xor_attention(block, links, x, events.mask)

    moved = [
        [bool(gap.abs().max() > 1e-9) for gap in (links - more, x - y[:, :5])]
        for (links, x), (more, y) in zip(states(5), states(6), strict=True)
    ]
    assert moved == [[False, False], [True, False], [True, True]]


# Which clock pays.


@every_lime
def test_the_candidate_clock_pays_r_d_whatever_the_history(ranker, draw_request, name):
    model, m, r, d = ranker(name).float32, 5, 3, 8
    for n in (0, 3, 50):
        request = draw_request(0, b=2, n=n, m=m, full=True)
        items = model.encode_items(request.candidates).code
        code = model.encode_request(request).code
        assert count(model.encoder.fuse, items, code).flops == 2 * (2 * m * r * d)


@every_lime
def test_the_request_clock_is_linear_in_n(ranker, draw_request, name):
    """Exactly: the second hundred of events costs what the first did."""
    model = ranker(name).float32

    def flops(n):
        request = draw_request(0, b=1, n=n, m=1, full=True)
        events = encode(model, request.history, request.user)
        return count(model.encoder.encode_history, *events).flops

    first, second = flops(200) - flops(100), flops(300) - flops(200)
    assert first == second > 0


@pytest.mark.parametrize(
    "encoder",
    [
        LimeMHA(16, r=4, dropout=0.0),
        *(LimeXOR(16, r=4, layers=layers, dropout=0.0) for layers in (1, 2, 3)),
    ],
    ids=["MHA", "XOR, one block", "XOR, two blocks", "XOR, three blocks"],
)
def test_nothing_as_large_as_n_squared_is_made(encoder):
    """At N = 512, backward too: 2 N d for keys and values, heads r N for weights."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            leaves = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            sizes.extend(x.numel() for x in leaves)
            return out

    vectors = torch.randn(1, 512, 16, requires_grad=True)
    events = Events(vectors=vectors, mask=torch.ones(1, 512, dtype=torch.bool))
    with Watch():
        code = encoder.encode_history(events, torch.randn(1, 2, 16))
        code.links.sum().backward()
    assert 512 * 16 <= max(sizes) <= 513 * max(2 * 16, 2 * 4)


@every_lime
def test_the_last_block_s_events_are_not_computed(ranker, draw_request, name):
    """Nobody reads them; the events' half runs in one block fewer."""
    model, request = ranker(name).float32, draw_request(0, b=1, n=40, m=1, full=True)
    events = encode(model, request.history, request.user)
    halves, d, r = max(LAYERS.get(name, 1) - 1, 0), 8, 3
    flops = count(model.encoder.encode_history, *events).flops
    none = count(
        model.encoder.encode_history,
        *encode(model, request.history.map(lambda t: t[:, :0]), request.user),
    ).flops
    links_half = 40 * (4 * d * d + 4 * r * d)  # keys and values, scores and sums
    events_half = 40 * (6 * d * d + 4 * r * d)
    assert (
        flops - none == max(LAYERS.get(name, 1), 1) * links_half + halves * events_half
    )


# Amortized training.


@pytest.mark.parametrize("name", ["LIME-MHA", "LIME-sum", *list(LAYERS)[:2]])
def test_candidates_of_one_request_share_a_set_of_links(
    ranker, draw_request, assert_same, name, monkeypatch
):
    """Three sets for nine candidates, made once each; the scores are the same."""
    request = draw_request(0, b=2, n=6, m=9, full=True)
    visible = torch.tensor([[2, 5, 6], [0, 4, 4]]).repeat_interleave(3, dim=1)
    request = replace(request, visible=visible)
    module = inspect.getmodule(type(ranker(name).float32.encoder))
    sets, readable = [], module.readable

    def noting(mask, visible):
        sets.append(visible.tolist())
        return readable(mask, visible)

    monkeypatch.setattr(module, "readable", noting)

    def apart(model):
        one = (
            replace(
                request,
                candidates=request.candidates[:, [m]],
                visible=visible[:, [m]],
            )
            for m in range(9)
        )
        return torch.cat([model(each) for each in one], dim=1)

    ranker(name).float32(request)
    assert sets == [[[2, 5, 6], [0, 4, 0]]]
    assert_same(lambda model: model(request), apart, ranker(name))


def test_prefixes_of_two_blocks_share_all_keys(ranker, draw_request):
    """Each event is projected once, however many candidates see how much of it."""
    model = ranker("LIME-XOR, two blocks").float32
    request = draw_request(0, b=1, n=40, m=6, full=True)
    visible = torch.tensor([[0, 5, 11, 23, 39, 40]])
    calls, blocks = [], model.encoder.blocks
    hooks = [
        block.key_value.register_forward_hook(
            lambda module, args, out: calls.append(args[0].shape[1])
        )
        for block in blocks
    ]
    model.encode_request(replace(request, visible=visible))
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == [3, 40, 40]  # raw events, L^C, events that have read L^C


def test_read_links_of_no_event_gives_none():
    encoder = LimeXOR(8, r=3)
    links = torch.randn(2, 3, 8)
    assert read_links(encoder.blocks[0], torch.randn(2, 0, 8), links).shape == (2, 0, 8)
