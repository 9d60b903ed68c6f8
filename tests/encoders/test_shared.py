"""Candidates that see as much: a set of what is kept is made once for all of them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from recsys_edu.cost import count
from recsys_edu.encoders import shared
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.lime import LinkCode

SHARING = [
    "LIME-MHA",
    "LIME-sum",
    "LIME-XOR, one block",
    "LIME-XOR, two blocks",
    "LREA",
]
each = pytest.mark.parametrize("name", SHARING)
VISIBLE = torch.tensor([[2, 5, 6], [0, 4, 4]])


class Noting:
    """What it is asked for is what it gives, in a tensor and in a tree."""

    def __init__(self, asked):
        self.asked = asked

    @shared.once_a_prefix
    def tensor(self, events, context):
        self.asked.append(events.visible)
        return events.visible

    @shared.once_a_prefix
    def tree(self, events, context):
        return LinkCode(self.tensor(replace(events), context))


@given(
    st.integers(1, 6).flatmap(
        lambda m: st.lists(
            st.lists(st.integers(0, 2), min_size=m, max_size=m), min_size=1, max_size=3
        )
    )
)
def test_each_candidate_has_the_set_of_what_it_sees(drawn):
    """In any order; no more sets are made than the row of most runs has."""
    visible, asked = torch.tensor(drawn), []
    events = Events(torch.zeros(len(drawn), 0, 1), torch.zeros(len(drawn), 0), visible)
    assert torch.equal(Noting(asked).tensor(events, None), visible)
    assert torch.equal(Noting(asked).tree(events, None).links, visible)
    most = 1 + int((visible[:, 1:] != visible[:, :-1]).sum(1).max())
    assert {sets.shape[1] for sets in asked} == {most}


def asked_for(model, request):
    events = model.events(request)
    return model.encoder.encode_history, events, model.embeddings.users(request.user)


@each
def test_four_candidates_of_a_moment_cost_the_request_clock_one(
    ranker, draw_request, name
):
    model = ranker(name).float32
    request = draw_request(0, b=2, n=6, m=12, full=True)
    once = replace(request, candidates=request.candidates[:, :3], visible=VISIBLE)
    four = replace(request, visible=VISIBLE.repeat_interleave(4, dim=1))
    flops = [count(*asked_for(model, each)).flops for each in (once, four)]
    assert flops[0] == flops[1] > 0


@each
def test_the_shared_set_is_each_candidate_s_own_and_so_is_its_gradient(
    ranker, draw_request, name
):
    """But for rounding: of 64 operations on a path, and of m gradients added up."""
    model, m = ranker(name).float64, 12
    request = draw_request(1, b=2, n=6, m=m, full=True)
    request = replace(request, visible=VISIBLE.repeat_interleave(4, dim=1))
    encode, events, user = asked_for(model, request)
    vectors = events.vectors.detach().requires_grad_()
    events = replace(events, vectors=vectors)
    codes = encode(events, user), encode.__wrapped__(model.encoder, events, user)
    for part, own in zip(*map(tree_leaves, codes), strict=True):
        assert part.shape == own.shape and part.shape[1] == m
        assert (part - own).abs().max() <= 64 * 2**-53 * own.abs().max()
        seed = torch.Generator().manual_seed(2)
        weights = torch.randn(own.shape, generator=seed, dtype=own.dtype)
        got, expected = (
            torch.autograd.grad((x * weights).sum(), vectors, retain_graph=True)[0]
            for x in (part, own)
        )
        budget = 64 * m * 2**-53 * expected.abs().max()
        assert (got - expected).abs().max() <= budget
