"""Codes that live between requests: extended, kept, dropped, and never wrong."""

import copy
import sys
import threading
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.batch import History, Request, pad_histories
from recsys_edu.cost import count, nbytes
from recsys_edu.data import Histories
from recsys_edu.encoders.base import CannotExtend, Events
from recsys_edu.experiments import traffic
from recsys_edu.scoring.strategies import amortized, naive
from recsys_edu.scoring.user_cache import UserCache, grow
from recsys_edu.scoring.versions import weights_version
from recsys_edu.values import Values

EXTENDABLE = ["append-causal", "append-cross, causal", "HSTU"]
# Their codes hold r rows and what those can grow from; more in test_low_rank.
GROWING = ["LIME-MHA", "LIME-XOR, one block", "truncated MHA"]
NO_EXTEND = ["mean pooling", "DIN", "concat", "append-self", "two-tower", "LREA"]
XOR = ["LIME-XOR, two blocks", "LIME-XOR"]
ENCODERS = [*EXTENDABLE, *GROWING, "append-cross", *XOR, *NO_EXTEND]
ROOM = 10**7  # bytes, more than any test fills

SEEDS = st.integers(0, 999)
extendable = pytest.mark.parametrize("name", EXTENDABLE)
few = settings(max_examples=6, deadline=None)


def head(history, n):
    """The first n events."""
    return history.map(lambda t: t[:, :n])


def with_history(request, history):
    return replace(request, history=history)


# A longer history, from the code of a shorter one.


def encode(model, history, user):
    return model.encoder.encode_history(
        newer(model, history, 0), model.embeddings.users(user)
    )


def newer(model, history, since):
    """The events from ``since`` on, as an encoder takes them."""
    return Events(
        model.embeddings.events(history, since),
        history.mask[:, since:],
        timestamp=history.timestamp[:, since:],
        now=history.timestamp.new_full((len(history.mask), 1), 2**27),
    )


def in_chunks(model, history, user, cuts):
    """The code of the history up to the first cut, extended from cut to cut."""
    code = encode(model, head(history, cuts[0]), user)
    users = model.embeddings.users(user)
    for known, n in zip(cuts, [*cuts[1:], history.item.shape[1]], strict=True):
        new = newer(model, head(history, n), known)
        code = model.encoder.extend(code, new, users)
    return code


def layer(code, number):
    return torch.stack([code.k[:, number], code.v[:, number]])


def parts(code, dtype):
    """Every tensor that is kept, as numbers, apart for each layer, head or event."""
    kept = []
    code.map(kept.append)
    return [part.to(dtype) for tensor in kept for part in tensor.unbind(1)]


@pytest.mark.parametrize("name", [*EXTENDABLE, "LIME-MHA", "LIME-XOR, one block"])
@few
@given(
    size=st.integers(0, 2),  # with no, absolute and time-gap positions
    b=st.integers(1, 3),
    n=st.integers(0, 8),
    cuts=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    seed=SEEDS,
)
def test_prefill_and_deltas_are_the_full_pass_in_every_part(
    ranker, draw_request, assert_same, name, size, b, n, cuts, seed
):
    """Split anywhere and into any chunks, empty ones among them; all that is kept."""
    request = draw_request(seed, b=b, n=n, m=1, full=True)
    history, user = request.history, request.user
    cuts = sorted(min(cut, n) for cut in cuts)

    @cache
    def whole(model):
        return parts(encode(model, history, user), model.top.user.weight.dtype)

    @cache
    def extended(model):
        code = in_chunks(model, history, user, cuts)
        return parts(code, model.top.user.weight.dtype)

    both = ranker(name, size)
    assert len(extended(both.float32)) == len(whole(both.float32)) > 0
    for i in range(len(whole(both.float32))):
        assert_same(
            lambda model, i=i: extended(model)[i],
            lambda model, i=i: whole(model)[i],
            both,
        )


@extendable
@pytest.mark.parametrize("size", [0, 1, 2])
@torch.no_grad()
def test_in_bfloat16_deltas_err_no_more_than_twice_the_full_pass(
    ranker, draw_request, name, size
):
    """Root mean square of every layer's keys and values, as in test_scoring.py."""
    low = copy.deepcopy(ranker(name, size).float32).bfloat16()
    exact_model = copy.deepcopy(low).double()
    request = draw_request(0, b=16, n=24, m=1, full=True)
    history, user = request.history, request.user
    exact = encode(exact_model, history, user)
    reference = encode(low, history, user)
    extended = in_chunks(low, history, user, [3, 4, 13])
    assert extended.k.dtype == torch.bfloat16

    def size_of(error):
        return error.double().square().mean().sqrt()

    for number in range(exact.k.shape[1]):
        truth = layer(exact, number)
        budget = 2 * size_of(layer(reference, number) - truth) + 2**-9 * size_of(truth)
        assert size_of(layer(extended, number) - truth) <= budget


@pytest.mark.parametrize("name", [*EXTENDABLE, *GROWING])
def test_extending_leaves_the_given_code_as_it_is(ranker, draw_request, name):
    model, request = ranker(name, 2).float32, draw_request(0, 2, 6, 1, full=True)
    code = encode(model, head(request.history, 4), request.user)
    kept = code.map(torch.clone)
    new = newer(model, request.history, 4)
    with torch.no_grad():
        longer = model.encoder.extend(code, new, model.embeddings.users(request.user))
        longer.map(lambda t: t.zero_())
    now, before = [], []
    code.map(now.append), kept.map(before.append)
    assert all(map(torch.equal, now, before))


@extendable
def test_extending_costs_what_the_new_events_cost(ranker, draw_request, name):
    """One event after 60: 1 token of 62 through the layers."""
    model, request = ranker(name).float32, draw_request(0, b=1, n=61, m=1, full=True)
    code = encode(model, head(request.history, 60), request.user)
    with torch.no_grad():
        delta = count(grow, model, code, request, 60)
        whole = count(model.encode_request, request)
    assert delta.flops * 50 < whole.flops


@pytest.mark.parametrize("name", ["append-cross", *XOR, *NO_EXTEND])
def test_who_cannot_extend_says_why(ranker, draw_request, name):
    model, request = ranker(name).float32, draw_request(0, b=1, n=4, m=1, full=True)
    code = model.encode_request(with_history(request, head(request.history, 3))).code
    reason = {
        "append-cross": "in a bidirectional history old events read new ones",
        "mean pooling": "MeanPooling keeps nothing that a longer history could go on",
        "concat": "ConcatEncoder keeps nothing",
        "append-self": "AppendSelfEncoder keeps nothing",
        "two-tower": "TwoTower keeps nothing",
        "DIN": "DIN keeps nothing",
        "LREA": "LREA keeps nothing",
        "LIME-XOR, two blocks": "with 2 XOR blocks a new event changes how the links",
        "LIME-XOR": "with 3 XOR blocks a new event changes",
    }[name]
    with pytest.raises(CannotExtend, match=reason):
        grow(model, code, request, known=3)


@pytest.mark.parametrize("name", ENCODERS)
def test_recency_cannot_extend_in_any_encoder(ranker, draw_request, name):
    model = ranker(name, positions="recency").float32
    request = draw_request(0, b=1, n=4, m=1, full=True)
    code = model.encode_request(with_history(request, head(request.history, 3))).code
    with pytest.raises(CannotExtend, match="Recency counts from the end of the hist"):
        grow(model, code, request, known=3)


@extendable
def test_recency_would_be_wrong_if_it_were_extended(ranker, draw_request, name):
    """The refusal is not caution: a new event moves what was added to the old ones."""
    model = ranker(name, positions="recency").float64
    request = draw_request(0, b=1, n=5, m=1, full=True)
    wrong = in_chunks(model, request.history, request.user, [3])
    right = encode(model, request.history, request.user)
    assert (wrong.k - right.k).abs().max() > 1e-3


def test_a_new_event_changes_old_rows_of_a_bidirectional_history(ranker, draw_request):
    """From the second layer on: the first layer's keys read the embeddings alone."""
    model = ranker("append-cross").float64
    request = draw_request(0, b=1, n=5, m=1, full=True)
    short = encode(model, head(request.history, 4), request.user)
    whole = encode(model, request.history, request.user)
    moved = (whole.k[..., :5, :] - short.k).abs().amax((0, 2, 3, 4))
    assert moved[0] < 1e-12 and moved[1] > 1e-3


# How a request is served.


def serve(model, requests, max_bytes=ROOM):
    """Scores of the requests through one cache, and how each was served."""
    cache, scores, outcomes = UserCache(model, max_bytes=max_bytes), [], []
    for request in requests:
        before = Counter(cache.outcomes)
        scores.append(
            amortized(model, request, micro_batch=2, encode=cache.encode_request)
        )
        [outcome] = cache.outcomes - before
        outcomes.append(outcome)
    return torch.cat(scores), outcomes


@pytest.fixture(scope="module")
def assert_served(assert_same):
    """A function: the requests score as uncached ones, and are served as expected."""

    def check(ranker, requests, expected):
        assert serve(ranker.float32, requests)[1] == expected
        assert_same(
            lambda model: serve(model, requests)[0],
            lambda model: torch.cat([naive(model, r) for r in requests]),
            ranker,
        )

    return check


@pytest.fixture
def request_of_one(draw_request):
    """One user, six events, three candidates."""
    return draw_request(1, b=1, n=6, m=3, full=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_hit_reads_no_event(ranker, request_of_one, assert_served, name):
    """Other candidates and another time are served from the same code."""
    other = replace(
        request_of_one,
        candidates=request_of_one.candidates[:, :1].flip(0),
        timestamp=request_of_one.timestamp + 60,
    )
    model = ranker(name, 2).float32
    cache = UserCache(model, max_bytes=ROOM)
    first = cache.encode_request(request_of_one).code
    events = model.embeddings.events
    try:
        model.embeddings.events = None  # whoever reads an event now fails
        again = cache.encode_request(other).code
    finally:
        del model.embeddings.events
    assert model.embeddings.events == events
    assert cache.outcomes == {"new user": 1, "hit": 1}
    same = again is first if name != "HSTU" else again.k is first.k
    assert same
    requests = [request_of_one, replace(other, candidates=request_of_one.candidates)]
    assert_served(ranker(name, 2), requests, ["new user", "hit"])


@pytest.mark.parametrize("padding", [1, 2])
def test_padding_is_no_part_of_a_history_s_version(
    ranker, request_of_one, assert_served, padding
):
    def pad(tensor):
        return torch.nn.functional.pad(tensor, (0, padding))

    padded = with_history(request_of_one, request_of_one.history.map(pad))
    requests = [padded, request_of_one, padded]
    assert_served(
        ranker("append-cross, causal", 2), requests, ["new user", "hit", "hit"]
    )


@pytest.mark.parametrize(
    "name, positions",
    [
        *product(EXTENDABLE, ["none", "absolute", "time gap", "recency"]),
        *product(GROWING, ["time gap", "recency"]),
        *product(["append-cross", *XOR, *NO_EXTEND], ["time gap"]),
    ],
)
def test_a_history_that_grew_is_extended_where_that_is_right(
    ranker, request_of_one, assert_served, name, positions
):
    """From no event on, one or several at a time."""
    requests = [
        with_history(request_of_one, head(request_of_one.history, n))
        for n in (0, 1, 4, 4, 6)
    ]
    may = name in EXTENDABLE + GROWING and positions != "recency"
    grown = "extended" if may else "cannot extend"
    expected = ["new user", grown, grown, "hit", grown]
    assert_served(ranker(name, positions=positions), requests, expected)


def changed(field, row, value):
    def change(history):
        column = getattr(history, field).clone()
        column[0, row] = value
        return replace(history, **{field: column})

    return change


def late_event(history):
    """An event arrives that belongs between the third and the fourth."""
    order = torch.tensor([0, 1, 2, 5, 3, 4])
    return history.map(lambda t: t[:, order])


EDITS = {
    "an item in the middle": changed("item", 2, 29),
    "an action in the middle": changed("action", 2, 0),
    "a moment in the middle": changed("timestamp", 2, 12345),
    "the last item": changed("item", -1, 29),
    "the first item": changed("item", 0, 29),
    "the last event deleted": lambda history: head(history, 5),
    "all events deleted": lambda history: head(history, 0),
    "a window that has slid": lambda history: history.map(lambda t: t[:, 1:]),
    "a late event": late_event,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name, size", [("append-cross, causal", 2), ("DIN", 0)])
def test_another_history_is_encoded_again(
    ranker, request_of_one, assert_served, name, size, edit
):
    request = request_of_one
    request.history.action[0, 2] = 1
    edited = with_history(request, EDITS[edit](request.history))
    requests = [request, edited, edited, request]
    back = (
        "extended"  # what was deleted at the end has come again
        if "deleted" in edit and name in EXTENDABLE
        else "cannot extend"
        if "deleted" in edit
        else "another history"
    )
    assert_served(
        ranker(name, size), requests, ["new user", "another history", "hit", back]
    )


def test_a_window_of_the_last_events_slides_and_is_encoded_again(
    world, ranker, assert_served
):
    """From the log: of the last ``max_events``, a new event drops the oldest."""
    histories = Histories.from_log(world.log)
    rows = [max(range(400), key=lambda row: histories.lengths([row])[0])]
    user = torch.from_numpy(world.log.user[rows])
    start, end = histories.start[rows], histories.end[rows]
    assert end - start > 8

    def at(end, max_events):
        history = pad_histories(histories, start, end, max_events)
        return Request(user, user[:, None], torch.tensor([[1, 2]]), history)

    both = ranker("append-cross, causal", 2)
    growing = [at(end - 1, 10**6), at(end, 10**6)]
    assert_served(both, growing, ["new user", "extended"])
    sliding = [at(end - 1, 5), at(end, 5)]
    assert_served(both, sliding, ["new user", "another history"])


def test_each_user_has_a_code_of_their_own(ranker, request_of_one, assert_served):
    other = replace(request_of_one, user=(request_of_one.user + 1) % 12)
    requests = [request_of_one, other, request_of_one, other]
    assert_served(
        ranker("append-causal", 1), requests, ["new user", "new user", "hit", "hit"]
    )


# Weights.


def optimizer_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(weight.square().sum() for weight in model.parameters()).backward()
    optimizer.step()


def loaded(model):
    state = {key: value.clone() * 0.5 for key, value in model.state_dict().items()}
    model.load_state_dict(state)


@torch.no_grad()
def in_place(model):
    model.encoder.blocks[0].key_value.weight[0, 0] += 1


def item_features(model):
    values = model.embeddings.items.values
    values.replace(range(30), sparse={"topic": [1] * 30})


def user_features(model):
    values = model.embeddings.users.values
    values.replace(range(12), sparse={"segment": [1] * 12})


def other_values(model):
    """Another catalogue, of the same version."""
    items = model.embeddings.items
    items.values = Values(items.values.features().without())
    items.values._codes[1:] = items.values._codes[1:].flip(0)


def another_parameter(model):
    model.encoder.start = torch.nn.Parameter(torch.ones(8))


def another_module(model):
    model.encoder = copy.deepcopy(model.encoder)
    in_place(model)


def rounded(model):
    model.bfloat16().float()


CHANGES = [
    optimizer_step,
    loaded,
    in_place,
    item_features,
    user_features,
    other_values,
    another_parameter,
    another_module,
    rounded,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_code_outlives_the_weights_that_made_it(make_model, request_of_one, change):
    model = make_model("append-cross, causal", positions="absolute")
    cache = UserCache(model, max_bytes=ROOM)

    def score(request):
        return amortized(model, request, micro_batch=2, encode=cache.encode_request)

    before = score(request_of_one)
    change(model)
    longer = request_of_one
    shorter = with_history(longer, head(longer.history, 5))
    for request in (request_of_one, shorter, longer):
        exact = naive(copy.deepcopy(model).double(), request)
        # 64 roundings, as in `assert_same`; twice the error of `naive` comes on top.
        budget = 2 * (naive(model, request) - exact).abs().max() + 64 * 2**-24
        assert (score(request) - exact).abs().max() <= budget
    assert not torch.equal(score(request_of_one), before)
    assert cache.outcomes["new weights"] == 1 and cache.outcomes["extended"] == 1


def test_an_old_code_is_not_extended_by_new_weights(make_model, request_of_one):
    model = make_model("append-cross, causal")
    cache = UserCache(model, max_bytes=ROOM)
    cache.encode_request(with_history(request_of_one, head(request_of_one.history, 4)))
    in_place(model)
    code = cache.encode_request(request_of_one).code
    assert cache.outcomes == {"new user": 1, "new weights": 1}
    assert torch.equal(code.k, model.encode_request(request_of_one).code.k)


def test_the_same_weights_have_the_same_version(make_model, request_of_one):
    """Loading what is there already drops nothing."""
    model = make_model("append-cross, causal")
    cache = UserCache(model, max_bytes=ROOM)
    cache.encode_request(request_of_one)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    cache.encode_request(request_of_one)
    assert cache.outcomes == {"new user": 1, "hit": 1}


def test_the_version_is_of_every_parameter_and_buffer(make_model):
    model = make_model("append-causal", d=4, layers=1, heads=1, positions="absolute")
    version = weights_version(model)
    assert weights_version(copy.deepcopy(model)) == version
    assert weights_version(copy.deepcopy(model).double()) != version
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    seen = {version}
    for name in names:
        other = copy.deepcopy(model)
        tensor = dict((*other.named_parameters(), *other.named_buffers()))[name]
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(weights_version(other))
    assert len(seen) == 1 + len(names)


def test_clear_helps_where_pytorch_saw_no_change(make_model, request_of_one):
    """Writing through `.data` is invisible, as the docstring says; `clear` mends it."""
    model = make_model("append-cross, causal")
    cache = UserCache(model, max_bytes=ROOM)
    cache.encode_request(request_of_one)
    before = model.encoder.start.detach().clone()
    model.encoder.start.data += 1
    stale = cache.encode_request(request_of_one).code
    right = model.encode_request(request_of_one).code
    assert not torch.equal(stale.k, right.k)
    cache.clear()
    assert len(cache) == cache.bytes == 0
    assert torch.equal(cache.encode_request(request_of_one).code.k, right.k)
    # The version was dropped too: the first weights are not taken for these.
    with torch.no_grad():
        model.encoder.start.copy_(before)
    right = model.encode_request(request_of_one).code
    assert torch.equal(cache.encode_request(request_of_one).code.k, right.k)


@pytest.mark.parametrize("known", [0, 4])
@pytest.mark.parametrize("name", ["append-cross, causal", "LIME-MHA"])
@torch.no_grad()  # as the cache encodes: a gradient would ask for other kernels
def test_weights_that_change_while_a_history_is_encoded_are_read_again(
    make_model, request_of_one, monkeypatch, name, known
):
    """What is returned is of the new weights, and nothing of the old ones is kept."""
    model = make_model(name)
    cache, changes = UserCache(model, max_bytes=ROOM), [1]
    if known:
        cache.encode_request(
            with_history(request_of_one, head(request_of_one.history, 4))
        )
    events = model.events

    def while_it_reads(request, since=0):
        read = events(request, since)
        if changes:
            changes.pop()
            for weight in model.encoder.parameters():
                weight *= 0.5
        return read

    monkeypatch.setattr(model, "events", while_it_reads)
    for _ in range(2):
        side = cache.encode_request(request_of_one)
        right = model.encode_request(request_of_one)
        got, expected = [], []
        side.map(got.append), right.map(expected.append)
        assert all(map(torch.equal, got, expected))
    assert not changes and cache.outcomes["hit"] == 1
    assert cache.bytes == weight(cache) and len(cache) == 1


def test_weights_that_never_rest_are_refused(make_model, request_of_one, monkeypatch):
    model = make_model("append-cross, causal")
    cache, events = UserCache(model, max_bytes=ROOM), model.events

    def while_it_reads(request, since=0):
        in_place(model)
        return events(request, since)

    monkeypatch.setattr(model, "events", while_it_reads)
    with pytest.raises(RuntimeError, match="make another model and another cache"):
        cache.encode_request(request_of_one)
    assert len(cache) == cache.bytes == 0 and not cache.outcomes


def test_a_version_that_is_given_is_believed(make_model, request_of_one, monkeypatch):
    """No weight is hashed; what was encoded under another number is encoded again."""
    model, number = make_model("append-cross, causal"), 1
    cache = UserCache(model, max_bytes=ROOM, version=lambda: number)
    monkeypatch.setattr("recsys_edu.scoring.user_cache.weights_version", None)
    cache.encode_request(request_of_one)
    in_place(model)
    cache.encode_request(request_of_one)
    assert cache.outcomes == {"new user": 1, "hit": 1}
    number = 2
    code = cache.encode_request(request_of_one).code
    assert cache.outcomes["new weights"] == 1
    assert torch.equal(code.k, model.encode_request(request_of_one).code.k)
    item_features(model)  # which no deployment counts
    cache.encode_request(request_of_one)
    assert cache.outcomes["new weights"] == 2


def test_new_items_and_users_drop_no_entry(make_model, request_of_one):
    model = make_model("append-cross, causal")
    cache = UserCache(model, max_bytes=ROOM)
    cache.encode_request(request_of_one)
    model.embeddings.items.values.add([99], sparse={"topic": [1]})
    model.embeddings.users.values.add([99], sparse={"segment": [1]})
    cache.encode_request(request_of_one)
    assert cache.outcomes == {"new user": 1, "hit": 1}


@pytest.mark.parametrize("name", ["append-cross, causal", "HSTU", "LIME-MHA"])
@pytest.mark.parametrize("given", [None, lambda: 1])
@torch.no_grad()
def test_a_code_serves_its_own_precision(make_model, request_of_one, name, given):
    model = make_model(name)
    cache = UserCache(model, max_bytes=ROOM, version=given)

    def same_as_uncached():
        got = amortized(
            model, request_of_one, micro_batch=3, encode=cache.encode_request
        )
        assert torch.equal(got, amortized(model, request_of_one, micro_batch=3))

    for _ in range(2):
        same_as_uncached()
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                same_as_uncached()
    assert cache.outcomes == {"new user": 3, "hit": 3}
    for weight in model.parameters():
        weight.data = weight.data.double()
    same_as_uncached()
    assert cache.outcomes["hit"] == 3


def test_a_model_made_in_inference_mode_is_served(make_model, request_of_one):
    """PyTorch counts no change of its weights, so they are hashed at every request."""
    with torch.inference_mode():
        model = make_model("append-cross, causal")
    cache = UserCache(model, max_bytes=ROOM)
    for _ in range(2):
        code = cache.encode_request(request_of_one).code
    assert cache.outcomes == {"new user": 1, "hit": 1}
    with torch.inference_mode():
        model.encoder.start.mul_(2)
        again = cache.encode_request(request_of_one).code
    assert cache.outcomes["new weights"] == 1
    assert not torch.equal(code.k, again.k)


def test_weights_loaded_in_inference_mode_are_seen(make_model, request_of_one):
    model = make_model("append-cross, causal")
    cache = UserCache(model, max_bytes=ROOM)
    for assign in (False, True, True):
        cache.encode_request(request_of_one)
        with torch.inference_mode():
            state = {key: value / 2 for key, value in model.state_dict().items()}
            model.load_state_dict(state, assign=assign)
    cache.encode_request(request_of_one)
    assert cache.outcomes == {"new user": 1, "new weights": 3}


# Several users at once.


@pytest.mark.parametrize("name", [*ENCODERS, "naive"])
@few
@given(
    seed=SEEDS,
    visits=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=5),
        min_size=1,
        max_size=3,
    ),  # of each batch, the users and how many of their events there are
)
def test_users_are_looked_up_alone_and_answered_together(
    ranker, draw_request, assert_same, name, seed, visits
):
    """Hits, grown and new histories of different lengths, twice the same user."""
    alone = [
        replace(
            draw_request(seed + user, 1, 6, 3, full=True), user=torch.tensor([user])
        )
        for user in range(4)
    ]

    def batches(score):
        for visit in visits:
            asked = [
                with_history(alone[user], head(alone[user].history, n))
                for user, n in visit
            ]
            if asked:
                yield score(Request.stack(asked))

    def cached(model):
        cache = UserCache(model, max_bytes=ROOM)

        def score(request):
            encode = cache.encode_request
            return amortized(model, request, micro_batch=2, encode=encode)

        scores = torch.cat([torch.zeros(0, 3), *batches(score)])
        assert sum(cache.outcomes.values()) == sum(map(len, visits))
        assert cache.bytes == weight(cache)
        return scores

    def uncached(model):
        scores = batches(lambda request: naive(model, request))
        return torch.cat([torch.zeros(0, 3), *scores])

    assert_same(cached, uncached, ranker(name, 2))


def test_a_batch_of_nobody_is_served(ranker, draw_request):
    model = ranker("append-causal").float32
    cache, request = UserCache(model, max_bytes=ROOM), draw_request(0, b=0, n=3, m=2)
    encode = cache.encode_request
    assert amortized(model, request, micro_batch=2, encode=encode).shape == (0, 2)
    assert not cache.outcomes


def test_an_entry_of_a_batch_keeps_nothing_of_the_others(ranker, request_of_one):
    cache = UserCache(ranker("append-cross, causal").float32, max_bytes=ROOM)
    users = [of_user(request_of_one, user, n) for user, n in ((0, 3), (1, 6), (2, 0))]
    cache.encode_request(Request.stack(users))
    assert cache.bytes == weight(cache) == sum(map(entry_bytes, (3, 6, 0)))


@pytest.mark.parametrize("name", ["HSTU", "LIME-MHA", "DIN"])
def test_in_a_batch_or_alone_an_entry_weighs_the_same(ranker, request_of_one, name):
    users = [of_user(request_of_one, user, n) for user, n in ((0, 3), (1, 6), (2, 0))]
    batch, alone = (UserCache(ranker(name).float32, max_bytes=ROOM) for _ in range(2))
    batch.encode_request(Request.stack(users))
    for request in users:
        alone.encode_request(request)
    assert batch.bytes == weight(batch) == alone.bytes == weight(alone) > 0


# Threads.


@pytest.mark.parametrize("name", traffic.ENCODERS)
def test_threads_share_a_cache_and_an_index_while_weights_are_replaced(name):
    """Evictions, extensions, five swaps; items leave the index and come again."""
    row = traffic.serve(name, requests=1500, threads=8, swaps=5)
    assert row["first_error"] == ""
    assert row["wrong"] == row["errors"] == row["bytes_off"] == 0
    assert row["swaps"] == 5 and row["hit"] > 100 and row["extended"] > 50
    assert row["new_user"] > traffic.USERS  # some of them for the second time


def test_threads_leave_the_count_of_bytes_exact(ranker, request_of_one):
    """Eight users in a cache of three, and threads that clear it."""
    model = ranker("append-cross, causal").float32
    cache = UserCache(model, max_bytes=3 * entry_bytes(6))
    errors, interval = [], sys.getswitchinterval()

    def ask(seed):
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(60):
                user, n = torch.randint(0, 7, (2,), generator=generator).tolist()
                cache.encode_request(of_user(request_of_one, user, n))
                if n == user:
                    cache.clear()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert cache.bytes == weight(cache) <= cache.max_bytes
    assert sum(cache.outcomes.values()) == 8 * 60


# Nothing that is kept can be changed from outside.


def test_an_entry_does_not_follow_its_request(make_model, request_of_one):
    model = make_model("append-cross, causal", positions="time gap")
    cache = UserCache(model, max_bytes=ROOM)
    same = request_of_one.map(torch.clone)
    kept = cache.encode_request(request_of_one).code.map(torch.clone)
    request_of_one.map(lambda t: t.zero_())
    code = cache.encode_request(same).code
    assert cache.outcomes == {"new user": 1, "hit": 1}
    for part in ("k", "v", "mask"):
        assert torch.equal(getattr(code, part), getattr(kept, part))


@pytest.mark.parametrize("name", ENCODERS)
def test_serving_writes_into_no_kept_code(ranker, request_of_one, name):
    """Hits, extensions and fusions leave every code that was handed out as it was."""
    model = ranker(name, 2).float32
    cache, kept = UserCache(model, max_bytes=ROOM), []
    for n in (2, 2, 4, 6, 6):
        request = with_history(request_of_one, head(request_of_one.history, n))
        side = cache.encode_request(request)
        side.map(lambda t: kept.append((t, t.clone())))
        amortized(model, request, micro_batch=1, encode=cache.encode_request)
    assert all(torch.equal(now, before) for now, before in kept)


@pytest.mark.parametrize("name", ENCODERS)
def test_no_graph_is_kept(make_model, request_of_one, name):
    model, tensors = make_model(name), []
    cache = UserCache(model, max_bytes=ROOM)
    for n in (4, 4, 6):
        request = with_history(request_of_one, head(request_of_one.history, n))
        cache.encode_request(request).map(tensors.append)
    assert tensors and not any(tensor.requires_grad for tensor in tensors)


def test_a_code_made_in_inference_mode_serves_and_grows_outside(
    make_model, request_of_one
):
    model = make_model("append-causal")
    cache = UserCache(model, max_bytes=ROOM)
    for n in (3, 6):
        request = with_history(request_of_one, head(request_of_one.history, n))
        with torch.inference_mode():
            cache.encode_request(request)
        scores = amortized(model, request, micro_batch=3, encode=cache.encode_request)
        scores.sum().backward()  # inference tensors could not be saved for it
    assert cache.outcomes == {"new user": 1, "hit": 2, "extended": 1}


# Bytes, and what is dropped.


def entry_bytes(n, d=8, layers=2):
    """24 for an event; keys, values and one flag for each of 1 + n tokens."""
    return 24 * n + (1 + n) * (8 * layers * d + 1)


def of_user(request, user, n):
    history = head(request.history, n)
    return replace(request, user=torch.tensor([user]), history=history)


def test_the_bytes_of_an_entry_are_known(ranker, request_of_one):
    cache = UserCache(ranker("append-cross, causal").float32, max_bytes=ROOM)
    cache.encode_request(of_user(request_of_one, 0, 3))
    assert cache.bytes == entry_bytes(3)
    cache.encode_request(of_user(request_of_one, 1, 0))
    assert cache.bytes == entry_bytes(3) + entry_bytes(0)
    cache.encode_request(of_user(request_of_one, 0, 6))  # in place of the shorter one
    assert cache.bytes == entry_bytes(6) + entry_bytes(0) and len(cache) == 2


def test_the_least_recently_used_is_dropped(ranker, request_of_one):
    cache = UserCache(
        ranker("append-cross, causal").float32, max_bytes=3 * entry_bytes(4)
    )

    def outcome(user):
        before = Counter(cache.outcomes)
        cache.encode_request(of_user(request_of_one, user, 4))
        [served] = cache.outcomes - before
        return served

    assert [outcome(user) for user in (0, 1, 2)] == 3 * ["new user"]
    assert cache.bytes == cache.max_bytes  # a full cache drops nothing yet
    assert outcome(0) == "hit"  # 1 is now the oldest
    assert outcome(3) == "new user" and len(cache) == 3
    assert [outcome(user) for user in (0, 2, 3)] == 3 * ["hit"]
    assert outcome(1) == "new user"  # and drops 0
    assert outcome(0) == "new user"


def test_one_byte_less_holds_one_entry_less(ranker, request_of_one):
    cache = UserCache(
        ranker("append-cross, causal").float32, max_bytes=2 * entry_bytes(4) - 1
    )
    for user in (0, 1):
        cache.encode_request(of_user(request_of_one, user, 4))
    assert len(cache) == 1 and cache.bytes == entry_bytes(4)


def test_a_long_history_drops_as_many_as_it_needs(ranker, request_of_one):
    cache = UserCache(
        ranker("append-cross, causal").float32,
        max_bytes=entry_bytes(6) + entry_bytes(1),
    )
    for user in range(4):
        cache.encode_request(of_user(request_of_one, user, 1))
    assert len(cache) == 4
    cache.encode_request(of_user(request_of_one, 4, 6))
    assert len(cache) == 2 and cache.bytes == cache.max_bytes
    cache.encode_request(of_user(request_of_one, 3, 1))
    assert cache.outcomes == {"new user": 5, "hit": 1}


def test_an_entry_larger_than_the_budget_is_not_kept(ranker, request_of_one):
    model = ranker("append-cross, causal").float32
    cache = UserCache(model, max_bytes=entry_bytes(4))
    for n, kept in ((4, 1), (6, 0), (6, 0), (3, 1)):
        request = of_user(request_of_one, 0, n)
        scores = amortized(model, request, micro_batch=2, encode=cache.encode_request)
        torch.testing.assert_close(scores, naive(model, request))
        assert len(cache) == kept and cache.bytes == kept * entry_bytes(n)


def test_an_entry_larger_than_the_budget_drops_nobody_else(ranker, request_of_one):
    model = ranker("append-cross, causal").float32
    cache = UserCache(model, max_bytes=entry_bytes(4))
    cache.encode_request(of_user(request_of_one, 0, 4))
    cache.encode_request(of_user(request_of_one, 1, 6))
    assert len(cache) == 1
    cache.encode_request(of_user(request_of_one, 0, 4))
    assert cache.outcomes == {"new user": 2, "hit": 1}


# What is refused.


@pytest.mark.parametrize("given", [None, lambda: 1])
def test_a_model_in_training_is_refused(make_model, request_of_one, given):
    model = make_model("append-causal").train()
    cache = UserCache(model, max_bytes=ROOM, version=given)
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        cache.encode_request(request_of_one)
    model.eval()
    cache.encode_request(request_of_one)


def test_a_part_of_a_model_in_training_is_refused(make_model, request_of_one):
    model = make_model("append-causal")
    model.encoder.train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        UserCache(model, max_bytes=ROOM).encode_request(request_of_one)


def test_visible_is_refused(ranker, request_of_one):
    cache = UserCache(ranker("append-causal").float32, max_bytes=ROOM)
    visible = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="visible is None"):
        cache.encode_request(replace(request_of_one, visible=visible))


def test_a_request_that_fails_leaves_the_cache_as_it_was(make_model, request_of_one):
    """A history grows past the table of positions: an error, and no entry is lost."""
    model = make_model("append-causal", positions="absolute")
    cache = UserCache(model, max_bytes=ROOM)
    cache.encode_request(request_of_one)
    outcomes, bytes_before = Counter(cache.outcomes), cache.bytes
    longer = request_of_one.history.map(lambda t: t[:, :1].expand(1, 395))
    longer = History(
        *(
            torch.cat([getattr(request_of_one.history, name), getattr(longer, name)], 1)
            for name in ("item", "action", "timestamp", "mask")
        )
    )
    with pytest.raises(ValueError, match="Absolute has 400 rows, too few"):
        cache.encode_request(with_history(request_of_one, longer))
    assert cache.outcomes == outcomes and cache.bytes == bytes_before
    cache.encode_request(request_of_one)
    assert cache.outcomes["hit"] == 1


def test_a_ranker_without_an_encoder_is_served_too(
    ranker, request_of_one, assert_served
):
    shorter = with_history(request_of_one, head(request_of_one.history, 4))
    assert_served(
        ranker("naive"), [shorter, request_of_one], ["new user", "cannot extend"]
    )


def weight(cache):
    """What the entries weigh, counted anew."""
    entries = cache._entries.values()
    return sum(nbytes([entry.events, entry.code]) for entry in entries)


# Any sequence of requests.

OPERATIONS = ["grow", "grow", "repeat", "pad", "edit", "shorten", "slide", "late"]


@pytest.mark.parametrize(
    "name, positions",
    [
        ("append-cross, causal", "absolute"),
        ("append-causal", "time gap"),
        ("append-cross, causal", "recency"),
        ("HSTU", "none"),
        ("LIME-MHA", "time gap"),
        ("two-tower", "absolute"),
    ],
)
@few
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([*OPERATIONS, "new weights"]),
            st.integers(0, 2),  # of which user
            st.integers(0, 999),
        ),
        min_size=3,
        max_size=10,
    ),
    max_bytes=st.sampled_from([0, 1500, ROOM]),
)
def test_any_sequence_of_requests_scores_as_without_a_cache(
    ranker, draw_request, assert_same, name, positions, steps, max_bytes
):
    def requests():
        """A request, or None where the weights change."""
        events = [draw_request(u, 1, 20, 2, full=True).history for u in range(3)]
        spans = [[0, 2] for _ in range(3)]
        for operation, user, number in steps:
            span, history = spans[user], events[user]
            at = min(span[0] + number % 3, span[1])
            if operation == "new weights":
                yield None
                continue
            if operation == "grow":
                span[1] += 1 + number % 2
            elif operation == "edit":
                events[user] = changed("item", at, number % 30)(history)
            elif operation == "shorten":
                span[1] = max(span[0], span[1] - 1)
            elif operation == "slide":
                span[:] = span[0] + 1, span[1] + 1
            elif operation == "late":
                order = [*range(at), 19, *range(at, 19)]
                events[user] = history.map(lambda t, order=order: t[:, order])
            span[:] = min(span[0], 19), min(span[1], 20)
            shown = events[user].map(lambda t, span=span: t[:, slice(*span)])
            if operation == "pad":
                shown = shown.map(
                    lambda t, k=number: torch.nn.functional.pad(t, (0, k % 3))
                )
            drawn = draw_request(number, 1, 0, 2)
            yield replace(drawn, user=torch.tensor([user]), history=shown)

    def cached(model):
        cache = UserCache(model, max_bytes=max_bytes)

        def score(request):
            scores = amortized(
                model, request, micro_batch=1, encode=cache.encode_request
            )
            assert cache.bytes == weight(cache)
            assert cache.bytes <= max_bytes and len(cache) <= 3
            return scores

        return score

    def replayed(form):
        def scores(model):
            model = copy.deepcopy(model)
            score, out = form(model), []
            for request in requests():
                if request is None:
                    for weight in model.parameters():
                        weight.mul_(0.5)  # exact in either precision
                else:
                    out.append(score(request))
            return torch.cat([torch.zeros(0, 2), *out])

        return scores

    assert_same(
        replayed(cached),
        replayed(lambda model: lambda request: naive(model, request)),
        ranker(name, positions=positions),
    )
