"""The clock table's counts are what any machine counts."""

import pytest

from recsys_edu.experiments import clocks, record

COUNTS = [
    c
    for clock in ("item", "request", "candidate", "whole")
    for c in (clock, f"{clock}_bytes")
]


@pytest.fixture(scope="module")
def counted():
    return {row["model"]: row for row in clocks.runs()}


def test_the_record_is_what_is_counted_here(counted):
    runs = record.load("clocks").runs.set_index("model")
    assert list(runs.index) == list(clocks.MODELS) == list(counted)
    for name, row in counted.items():
        assert runs.loc[name, COUNTS].to_dict() == {c: row[c] for c in COUNTS}, name


def test_what_a_user_waits_for_is_the_request_and_all_candidates(counted):
    for row in counted.values():
        rounded = row["whole"] - row["request"] - clocks.M * row["candidate"]
        assert 0 <= rounded < clocks.M


def test_amortized_designs_leave_the_history_off_the_candidate_clock(counted):
    """A candidate costs a Transformer, then a token, then a sum over links."""
    of = {name: row["candidate"] for name, row in counted.items()}
    assert of["concat"] > 100 * of["append-cross"] > 1000 * of["naive DLRM"]
    assert of["append-cross"] > 10 * of["LIME-XOR"]
    assert of["LIME-XOR"] == of["LIME-MHA"]
