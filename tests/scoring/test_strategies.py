"""The same scores however they are computed: DESIGN's invariant 1.

The oracle is ``naive``, and one test holds that to a loop over single candidates and
unpadded histories. The budget of float32 and float64 is in conftest's `assert_same`;
that of bfloat16 stands where it is used.
"""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.batch import Request
from recsys_edu.encoders.single_pass import SinglePassEncoder
from recsys_edu.scoring.link_index import LinkIndex
from recsys_edu.scoring.strategies import amortized, links, naive, single_pass
from recsys_edu.scoring.user_cache import UserCache

ONE_SEQUENCE = ["append-causal", "append-cross", "append-cross, causal", "HSTU"]
LIME = ["LIME-MHA", "LIME-XOR, one block", "LIME-XOR, two blocks", "LIME-XOR"]
LOW_RANK = [*LIME, "truncated MHA", "LREA"]
OTHERS = ["mean pooling", "DIN", "concat", "append-self", "two-tower", *LOW_RANK]
MODELS = [*ONE_SEQUENCE, *OTHERS, "naive"]

SIZES = st.integers(0, 3)
SHAPES = st.fixed_dictionaries(
    dict(b=st.integers(1, 3), n=st.integers(0, 6), m=st.integers(0, 5)),
)
SEEDS = st.integers(0, 999)
every_model = pytest.mark.parametrize("name", MODELS)
few = settings(max_examples=6, deadline=None)


def scored_one_by_one(model, request, unpadded):
    """[B, M]: a loop over users and candidates, each history alone and unpadded."""
    scores = []
    for b in range(len(request.user)):
        row = unpadded(request, b)
        scores.append(
            torch.stack(
                [
                    model(replace(row, candidates=row.candidates[:, m : m + 1]))[0, 0]
                    for m in range(request.candidates.shape[1])
                ]
            )
        )
    return torch.stack(scores)


@every_model
@few
@given(size=SIZES, shape=SHAPES, seed=SEEDS)
def test_every_score_belongs_to_its_user_and_its_candidate(
    ranker, draw_request, unpadded, assert_same, name, size, shape, seed
):
    """Output order: no form may give a user's, or a candidate's, score to another."""
    request = draw_request(seed, **shape | dict(m=1 + shape["m"]))
    forms = [naive, lambda model, r: amortized(model, r, micro_batch=2)]
    if name in ONE_SEQUENCE:
        forms.append(single_pass)
    for form in forms:
        assert_same(
            lambda model, form=form: form(model, request),
            lambda model: scored_one_by_one(model, request, unpadded),
            ranker(name, size),
        )


@every_model
@few
@given(size=SIZES, shape=SHAPES, seed=SEEDS, micro_batch=st.integers(1, 6))
def test_amortized_scores_are_the_naive_ones(
    ranker, draw_request, assert_same, name, size, shape, seed, micro_batch
):
    """For M = 0 and 1, and for micro-batches that divide M or do not."""
    request = draw_request(seed, **shape)
    assert_same(
        lambda model: amortized(model, request, micro_batch=micro_batch),
        lambda model: naive(model, request),
        ranker(name, size),
    )


@pytest.mark.parametrize("name", ONE_SEQUENCE)
@few
@given(size=SIZES, shape=SHAPES, seed=SEEDS)
def test_one_masked_sequence_gives_the_naive_scores(
    ranker, draw_request, assert_same, name, size, shape, seed
):
    request = draw_request(seed, **shape)
    assert_same(
        lambda model: single_pass(model, request),
        lambda model: naive(model, request),
        ranker(name, size),
    )


@every_model
@few
@given(size=SIZES, seed=SEEDS, n=st.integers(0, 6))
def test_cached_scores_are_the_naive_ones(
    ranker, draw_request, assert_same, name, size, seed, n
):
    """First from an empty cache, then from a full one."""
    request = draw_request(seed, b=1, n=n, m=3)

    def twice(model):
        cache = UserCache(model, max_bytes=10**6)
        first, second = (
            amortized(model, request, micro_batch=2, encode=cache.encode_request)
            for _ in range(2)
        )
        assert cache.outcomes == {"new user": 1, "hit": 1}
        return torch.cat([first, second])

    assert_same(
        twice, lambda model: naive(model, request).repeat(2, 1), ranker(name, size)
    )


@every_model
@pytest.mark.parametrize("b, n", [(2, 3), (2, 0), (0, 3), (0, 0)])
def test_no_candidate_or_no_request_gives_no_score(ranker, draw_request, name, b, n):
    request, model = draw_request(0, b, n, m=0), ranker(name).float32
    forms = [naive, lambda model, r: amortized(model, r, micro_batch=2)]
    if name in ONE_SEQUENCE:
        forms.append(single_pass)
    assert all(form(model, request).shape == (b, 0) for form in forms)
    request = draw_request(0, 0, n, m=3)
    assert all(form(model, request).shape == (0, 3) for form in forms)


@every_model
def test_sorting_the_candidates_sorts_the_scores(
    ranker, draw_request, assert_same, name
):
    request = draw_request(3, b=3, n=5, m=7)
    order = request.candidates.argsort(dim=1, stable=True)

    def through_sorting(model):
        candidates = request.candidates.gather(1, order)
        scores = amortized(
            model, replace(request, candidates=candidates), micro_batch=3
        )
        return torch.empty_like(scores).scatter(1, order, scores)

    assert_same(through_sorting, lambda model: naive(model, request), ranker(name, 2))


@every_model
def test_the_history_is_read_once_for_all_micro_batches(make_model, draw_request, name):
    model, request = make_model(name), draw_request(0, b=2, n=5, m=7)
    calls, encode = [], model.encode_request
    model.encode_request = lambda *args: calls.append(args) or encode(*args)
    amortized(model, request, micro_batch=2)
    assert len(calls) == 1
    naive(model, request)
    assert len(calls) == 1 + 7


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_a_micro_batch_of_no_candidate_is_refused(ranker, draw_request, micro_batch):
    request = draw_request(0, b=1, n=3, m=2)
    with pytest.raises(ValueError, match=f"micro_batch is {micro_batch}; it must be 1"):
        amortized(ranker("DIN").float32, request, micro_batch=micro_batch)


FORMS = {
    "naive": naive,
    "amortized": lambda model, request: amortized(model, request, micro_batch=2),
    "single pass": single_pass,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", ["all of it", "one dropout"])
def test_a_model_in_training_is_refused(make_model, draw_request, form, part):
    model, request = make_model("append-causal"), draw_request(0, b=1, n=3, m=2)
    (model if part == "all of it" else model.encoder.blocks[0].dropout).train()
    with pytest.raises(
        ValueError, match=r"in training mode.*call model.eval\(\) first"
    ):
        FORMS[form](model, request)
    model.eval()
    FORMS[form](model, request)


@pytest.mark.parametrize("name", ["append-causal", "HSTU", "LIME-MHA", "concat"])
@few
@given(size=SIZES, shape=SHAPES, seed=SEEDS)
def test_what_is_not_shown_scores_minus_infinity(
    ranker, draw_request, assert_same, name, size, shape, seed
):
    """Exactly, in every form, whatever stands there; the others score as they do."""
    request = draw_request(seed, **shape)
    hidden = torch.rand(shape["b"], shape["m"]) < 0.4
    nonsense = request.candidates.masked_fill(hidden, 10**9)
    some = replace(request, candidates=nonsense, shown=~hidden)
    forms = dict(FORMS)
    if name not in ONE_SEQUENCE:
        del forms["single pass"]
    for label, form in forms.items():
        if label == "single pass":  # embeds all candidates as they are
            some = replace(some, candidates=request.candidates)
        got = form(ranker(name, size).float32, some)
        assert torch.equal(got.isneginf(), hidden) and not got.isnan().any()
        assert_same(
            lambda model, form=form, some=some: form(model, some).masked_fill(
                hidden, 0
            ),
            lambda model: naive(model, request).masked_fill(hidden, 0),
            ranker(name, size),
        )


def test_requests_of_different_m_share_a_batch(ranker, draw_request):
    model = ranker("append-causal").float32
    parts = [draw_request(m, b=1, n=m, m=m, full=True) for m in (3, 1, 0, 5)]
    scores = amortized(model, Request.stack(parts), micro_batch=2)
    assert scores.shape == (4, 5)
    for row, part in zip(scores, parts, strict=True):
        m = part.candidates.shape[1]
        alone = naive(model, part)[0]
        torch.testing.assert_close(row[:m], alone)
        assert row[m:].isneginf().all()


@pytest.mark.parametrize("name", OTHERS)
def test_single_pass_is_refused_where_no_mask_makes_it(ranker, draw_request, name):
    with pytest.raises(TypeError, match="has no single-pass form"):
        single_pass(ranker(name).float32, draw_request(0, b=1, n=3, m=2))


def test_single_pass_refuses_visible(ranker, draw_request):
    model = ranker("append-causal").float32
    request = replace(draw_request(0, b=1, n=3, m=2), visible=torch.tensor([[1, 3]]))
    with pytest.raises(ValueError, match="visible must be None"):
        model.with_encoder(SinglePassEncoder(model.encoder))(request)


def test_strategies_leave_the_model_as_it_is(ranker, draw_request):
    model, request = ranker("append-causal").float32, draw_request(0, 2, 4, 3)
    encoder, before = model.encoder, copy.deepcopy(model.state_dict())
    single_pass(model, request)
    amortized(model, request, micro_batch=2)
    assert model.encoder is encoder
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


# bfloat16.


@pytest.mark.parametrize("name", [*ONE_SEQUENCE, *OTHERS])
@pytest.mark.parametrize("size", [0, 2])
@torch.no_grad()
def test_in_bfloat16_no_form_errs_twice_as_much_as_naive(
    ranker, draw_request, name, size
):
    """Error: root mean square over 512 scores, against the same weights in float64.

    Every form rounds as often as the naive one, in another order, so their errors are
    draws of one size; the mean over 512 scores is known to a few percent. A score is
    also stored once, which costs half a unit in its last place: 2^-9 of it.
    """
    low = copy.deepcopy(ranker(name, size).float32).bfloat16()
    exact_model = copy.deepcopy(low).double()  # after rounding the weights
    request = draw_request(0, b=16, n=12, m=32)
    exact = naive(exact_model, request)

    def error(scores):
        assert scores.dtype == torch.bfloat16
        return (scores.double() - exact).square().mean().sqrt()

    def cached(model, request):
        encode, scores = UserCache(model, max_bytes=10**7).encode_request, []
        for b in range(len(request.user)):
            history = request.history.map(lambda t, b=b: t[b : b + 1])
            keep = history.mask[0].nonzero()[:, 0]
            short = history.map(lambda t, keep=keep: t[:, keep[: len(keep) // 2]])
            row = request[b : b + 1]
            # Half of the history first, so that the rest extends it where it can.
            amortized(model, replace(row, history=short), micro_batch=9, encode=encode)
            scores.append(amortized(model, row, micro_batch=9, encode=encode))
        return torch.cat(scores)

    forms = {
        "amortized": lambda model, r: amortized(model, r, micro_batch=9),
        "cached": cached,
    }
    if name in ONE_SEQUENCE:
        forms["single pass"] = single_pass
    budget = 2 * error(naive(low, request)) + 2**-9 * exact.square().mean().sqrt()
    for form, scores in forms.items():
        assert error(scores(low, request)) <= budget, form


@every_model
def test_nothing_is_left_over_from_another_request(ranker, draw_request, name):
    """The same request twice, another between."""
    model = ranker(name, 2).float32
    request, other = (draw_request(seed, b=2, n=6, m=5) for seed in (0, 1))
    first = amortized(model, request, micro_batch=2)
    amortized(model, other, micro_batch=3)
    assert torch.equal(amortized(model, request, micro_batch=2), first)


@torch.no_grad()
def test_the_cache_of_another_model_is_refused(ranker, draw_request):
    """Of the same weights too: which of the two is served must be said once."""
    model = ranker("LIME-MHA").float32
    cache = UserCache(copy.deepcopy(model), max_bytes=10**6)
    request, index = draw_request(0, 1, 5, 3), LinkIndex.build(model)
    for strategy in (amortized, partial(links, index=index)):
        with pytest.raises(ValueError, match="that another model encoded"):
            strategy(model, request, micro_batch=2, encode=cache.encode_request)
        strategy(model, request, micro_batch=2, encode=model.encode_request)


@torch.no_grad()
def test_what_stands_where_nothing_is_shown_is_never_embedded(ranker, draw_request):
    model, request = ranker("append-cross, causal").float32, draw_request(0, 1, 5, 3)
    shown = torch.tensor([[True, False, True]])
    garbage = request.candidates.where(shown, 10**9)
    hidden = replace(request, candidates=garbage, shown=shown)
    for scores in (model(hidden), single_pass(model, hidden)):
        torch.testing.assert_close(scores[shown], model(request)[shown])
        assert scores[0, 1] == -torch.inf
