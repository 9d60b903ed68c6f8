"""What is recorded is what its name says: LIME's variants, and the timed work."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from recsys_edu.attention.pointwise import PointwiseBlock
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.lime import Lime, LimeXOR
from recsys_edu.experiments import latency, lengths, quality, record, variants
from recsys_edu.scoring.strategies import naive

events = partial(torch.randn, 2, 5, 8, dtype=torch.float64)


def encoder_of(kind, **options):
    """In float64, its weights the same for every kind."""
    torch.manual_seed(0)
    encoder = kind(8, r=3, heads=2, **options).double().eval()
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return encoder


def links_of(encoder, vectors, context):
    """L^P of histories without padding."""
    mask = torch.ones(vectors.shape[:2], dtype=torch.bool)
    return encoder.encode_history(Events(vectors, mask), context).links


@torch.no_grad()
def test_links_without_context_know_the_history_alone():
    vectors, context, other = events(), events(), events()
    for kind, same in ((variants.LimeMHA, False), (variants.Uncontextual, True)):
        encoder = encoder_of(kind)
        a, b = (links_of(encoder, vectors, user) for user in (context, other))
        assert torch.equal(a, b) == same
        assert not torch.equal(a, links_of(encoder, events(), context))


@torch.no_grad()
def test_the_norm_divides_out_what_a_sum_is_divided_by():
    """But for the small constant in its denominator."""
    vectors, context = events(), events()
    encoders = [encoder_of(kind, layers=2) for kind in (LimeXOR, variants.Summed)]
    gaps = []
    for eps in (1e-5, 1e-13):
        for block in (block for encoder in encoders for block in encoder.blocks):
            block.norm_read.eps = eps
        mean, total = (links_of(encoder, vectors, context) for encoder in encoders)
        gaps.append((mean - total).abs().max())
    assert gaps[0] > 1e-4 > 1e-9 > gaps[1]


def test_the_summed_variant_divides_by_one():
    mask = torch.rand(2, 4, 5) < 0.5
    assert (encoder_of(variants.Summed).normaliser(mask) == 1).all()
    assert torch.equal(encoder_of(LimeXOR).normaliser(mask), mask.sum(-1))


@torch.no_grad()
def test_the_diagonal_is_one_key_more_in_the_same_sum():
    torch.manual_seed(0)
    plain = PointwiseBlock(8, 2, dropout=0.0).double()
    own = variants.ReadsItself(8, 2, dropout=0.0).double()
    own.load_state_dict(plain.state_dict())
    x, k, v = events(), *plain.keys_values(events())
    for n in (1, 7):  # the norm takes it out of the others' sum: it must not stay here
        alone = plain(x, k, v, None, 1, itself=0)
        torch.testing.assert_close(own(x, k, v, None, n), alone)
    encoder = encoder_of(variants.WithDiagonal, layers=2)
    assert all(type(block) is variants.ReadsItself for block in encoder.blocks)
    assert (encoder.normaliser(torch.ones(2, 5)) == 1).all()


@torch.no_grad()
def test_frozen_events_are_read_as_they_came_and_only_from_the_second_block_on(
    monkeypatch,
):
    vectors, context = events(), events()
    for layers, same in ((1, True), (2, False)):
        plain, frozen = (
            encoder_of(kind, layers=layers) for kind in (LimeXOR, variants.FrozenEvents)
        )
        a, b = (links_of(each, vectors, context) for each in (plain, frozen))
        assert torch.equal(a, b) == same
    read, block = [], variants.OnlyLinksRead
    keys_values = block.keys_values
    monkeypatch.setattr(
        block, "keys_values", lambda self, y: read.append(y) or keys_values(self, y)
    )
    links_of(encoder_of(variants.FrozenEvents, layers=3), vectors, context)
    seen = [y for y in read if y.shape == vectors.shape]
    assert len(seen) == 3 and all(torch.equal(y, vectors) for y in seen)


def test_the_orthogonal_start_keeps_lengths():
    torch.manual_seed(0)
    for block in variants.Orthogonal(8, r=3, layers=2).blocks:
        for both in (block.gate_query.weight, block.key_value.weight):
            for half in both.chunk(2):
                torch.testing.assert_close(half @ half.T, torch.eye(8))


def test_hstu_without_time_never_learns_it():
    torch.manual_seed(0)
    encoder = variants.Untimed(8, layers=2, heads=2)
    learnt = {name for name, w in encoder.named_parameters() if w.requires_grad}
    assert not any(name.endswith(".time") for name in learnt)
    assert all((bias.time == 0).all() for bias in encoder.biases)


def test_models_of_the_lengths_differ_from_their_base_in_events_alone():
    for name, model in lengths.MODELS.items():
        base = quality.MODELS[lengths.base(name)]
        assert model == replace(base, events=int(name.rpartition(" = ")[2]))
        assert model.events in lengths.EVENTS


@pytest.mark.parametrize("name", latency.ENCODERS)
@torch.no_grad()
def test_what_is_timed_are_the_ranker_s_scores(name):
    at = latency.request(5, 7)
    expected = naive(latency.ranker(name), at)
    torch.testing.assert_close(latency.whole(name, at)(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", latency.ENCODERS)
def test_the_timed_encoder_reads_all_candidates_and_no_item_tower(name, monkeypatch):
    at, fused = latency.request(5, 3000), []
    encoder = latency.ranker(name).encoder
    monkeypatch.setattr(
        encoder, "fuse", lambda items, code: fused.append(items.shape[1])
    )
    if isinstance(encoder, Lime):
        index = latency.index(name)
        monkeypatch.setattr(encoder, "encode_items", None)  # it looks them up
        assert latency.index(name) is index
    latency.encoder_alone(name, at)()
    assert sum(fused) == 3000 and max(fused) <= latency.MICRO_BATCH[name]


def test_every_size_of_every_sweep_is_a_row_and_ratios_are_to_lime(monkeypatch):
    monkeypatch.setattr(latency, "SIZES", {"M": [2, 3], "N": [4], "qk": [8]})
    monkeypatch.setattr(latency, "compare", partial(latency.compare, min_seconds=0))
    rows = list(latency.runs())
    models, parts = list(latency.ENCODERS), ("ranker", "encoder")
    expected = [
        *(("M", m, part, name) for m in (2, 3) for part in parts for name in models),
        *(("N", 4, part, name) for part in parts for name in models),
        *(("qk", 8, "ranker", name) for name in ("index", "no index")),
    ]
    where = [
        tuple(row[key] for key in ("sweep", "size", "part", "model")) for row in rows
    ]
    assert where == expected
    for row in rows:
        same = row["times"] == row["times_low"] == row["times_high"] == 1
        assert same == (row["model"] in ("LIME-XOR", "index"))
    with pytest.raises(ValueError, match="all models at once"):
        next(latency.runs(["HSTU"]))


def test_the_recorded_quality_is_of_the_models_rates_and_seeds_in_the_code():
    runs = record.load("quality").runs
    assert set(runs.model) <= set(quality.MODELS)
    for (_, task, model), rows in runs.groupby(["log", "task", "model"]):
        best = rows.rate[rows[rows.seed == 0].validation_ne.idxmin()]
        expected = {(rate, 0) for rate in quality.RATES}
        # Of concat, twenty minutes a run, the last seeds are still to be recorded.
        seeds = quality.SEEDS[:3] if model == "concat" else quality.SEEDS
        expected |= {(best, seed) for seed in seeds}
        found = list(zip(rows.rate, rows.seed, strict=True))
        assert sorted(found) == sorted(expected), (task, model)


def test_the_recorded_variants_are_of_the_models_and_seeds_in_the_code():
    runs = record.load("variants").runs
    expected = {(name, seed) for name in variants.MODELS for seed in quality.SEEDS[:3]}
    assert set(zip(runs.model, runs.seed, strict=True)) == expected
    assert {variants.base(name) for name in variants.MODELS} <= set(quality.MODELS)


def test_the_recorded_latency_is_of_the_sizes_in_the_code():
    runs = record.load("latency").runs
    for sweep, sizes in latency.SIZES.items():
        assert sorted(set(runs["size"][runs.sweep == sweep])) == sizes
    assert set(runs.model) == {*latency.ENCODERS, "index", "no index"}
