"""Concat and its variants: what a token is, and what of the outputs is read."""

import pytest
import torch

from recsys_edu.artefact import load_ranker, save_ranker
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.concat import ConcatEncoder, WideConcat

each = pytest.mark.parametrize("kind", [ConcatEncoder, WideConcat])


def drawn(n=4):
    generator = torch.Generator().manual_seed(n)
    vectors, items = (torch.randn(2, k, 8, generator=generator) for k in (n, 3))
    mask = torch.arange(n) < torch.tensor([n, n // 2])[:, None]
    return Events(vectors, mask), items


@each
def test_it_is_a_transformer_over_start_and_events_beside_the_candidate(kind):
    """One candidate and one user at a time, no padding, all outputs of all blocks."""
    encoder, (events, items) = kind(8).eval(), drawn()
    got = encoder(events, None, items)
    for b in range(2):
        real = events.vectors[b, events.mask[b]]
        tokens = torch.cat([encoder.start[None], real])
        for m, item in enumerate(items[b]):
            if kind is WideConcat:
                x = torch.cat([tokens, item.expand(len(tokens), 8)], dim=1)
                h = encoder.out(encoder.run(x[None], None)[0].mean(0))
            else:
                x = encoder.event(tokens) + item @ encoder.candidate.weight.T
                h = encoder.run(x[None], None)[0, 0]
            torch.testing.assert_close(got[b, m], h)


def test_the_defaults_draw_the_weights_they_always_drew():
    """By name, shape, order, and the sums of seed 0's draws; none more, none fewer."""
    torch.manual_seed(0)
    encoder = ConcatEncoder(8, layers=1)
    names = [name for name, _ in encoder.named_parameters() if "blocks" not in name]
    assert names == [
        *("start", "norm.weight", "norm.bias"),
        *("event.weight", "event.bias", "candidate.weight"),
    ]
    after = torch.rand(())
    torch.manual_seed(0)
    start, linear = torch.randn(8) * 8**-0.5, torch.nn.Linear
    for d_in, d_out in [(8, 8), (8, 16), (8, 8), (8, 32), (32, 8)]:
        linear(d_in, d_out)  # query, keys and values, out, and the feed-forward part
    event, candidate = linear(8, 8), linear(8, 8, bias=False)
    assert torch.equal(encoder.start, start)
    assert torch.equal(encoder.event.weight, event.weight)
    assert torch.equal(encoder.candidate.weight, candidate.weight)
    assert after == torch.rand(())


def test_wide_blocks_are_twice_as_wide_and_its_result_is_not():
    encoder, (events, items) = WideConcat(8).eval(), drawn()
    assert encoder.blocks[0].query.weight.shape == (16, 16)
    assert encoder.encode_history(events, None).vectors.shape == (2, 5, 8)
    assert encoder(events, None, items).shape == (2, 3, 8)


@torch.no_grad()
@pytest.mark.parametrize("name", ["concat", "concat, wide"])
def test_what_is_loaded_scores_to_the_bit(make_model, draw_request, tmp_path, name):
    model = make_model(name)
    request = draw_request(0, 3, 5, 4)
    save_ranker(model, tmp_path / "ranker.safetensors")
    again = load_ranker(tmp_path / "ranker.safetensors")
    assert torch.equal(again(request), model(request))
