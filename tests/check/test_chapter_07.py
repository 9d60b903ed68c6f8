"""Chapter 07's checks: a stub is blank, a solution passes, planted slips are caught."""

import pytest
import torch

from recsys_edu.check import chapter_07 as exercise


def by_weight(reads, lses):
    return lses.softmax(0) @ reads


def one_pass(scores, values):
    share = (scores - scores.max()).exp()
    return (share[:, None] * values).cumsum(0) / share.cumsum(0)[:, None]


def folded(q, w, events):
    return (q @ w) @ events.T


def less(total, n, weights, values):
    return total - weights @ values, n - len(values)


RIGHT = [
    (exercise.combined, by_weight),
    (exercise.prefixes, one_pass),
    (exercise.scores_without_keys, folded),
    (exercise.phi, [False, True, True]),
    (exercise.forget, less),
]


def each_prefix(scores, values):
    ends = range(1, len(scores) + 1)
    return torch.stack([scores[:n].softmax(0) @ values[:n] for n in ends])


WRONG = {
    "the mean of what was read": (exercise.combined, lambda reads, lses: reads.mean(0)),
    "weights that are the lses": (
        exercise.combined,
        lambda reads, lses: (lses / lses.sum()) @ reads,
    ),
    "weights that do not sum to one": (
        exercise.combined,
        lambda reads, lses: (lses - lses.max()).exp() @ reads,
    ),
    "exponentials that overflow": (
        exercise.combined,
        lambda reads, lses: lses.exp() @ reads / lses.exp().sum(),
    ),
    "the last part alone": (exercise.combined, lambda reads, lses: reads[-1]),
    "one softmax for all prefixes": (
        exercise.prefixes,
        lambda scores, values: (scores.softmax(0)[:, None] * values).cumsum(0),
    ),
    "means that ignore the scores": (
        exercise.prefixes,
        lambda scores, values: (
            values.cumsum(0) / torch.arange(1, len(values) + 1)[:, None]
        ),
    ),
    "prefixes one event short": (
        exercise.prefixes,
        lambda scores, values: one_pass(scores, values).roll(1, 0),
    ),
    "prefixes that overflow": (
        exercise.prefixes,
        lambda scores, values: (
            (scores.exp()[:, None] * values).cumsum(0) / scores.exp().cumsum(0)[:, None]
        ),
    ),
    "the last prefix for all": (
        exercise.prefixes,
        lambda scores, values: (scores.softmax(0) @ values).expand(len(values), -1),
    ),
    "each prefix anew": (exercise.prefixes, each_prefix),
    "keys for every event": (
        exercise.scores_without_keys,
        lambda q, w, events: q @ (events @ w.T).T,
    ),
    "keys in another order": (
        exercise.scores_without_keys,
        lambda q, w, events: q @ (w @ events.T),
    ),
    "a transposed answer": (
        exercise.scores_without_keys,
        lambda q, w, events: folded(q, w, events).T,
    ),
    "a scale that nobody asked for": (
        exercise.scores_without_keys,
        lambda q, w, events: folded(q, w, events) / q.shape[1] ** 0.5,
    ),
    "a count that stays": (
        exercise.forget,
        lambda total, n, weights, values: (total - weights @ values, n),
    ),
    "a count less one, however many": (
        exercise.forget,
        lambda total, n, weights, values: (total - weights @ values, n - 1),
    ),
    "values without weights": (
        exercise.forget,
        lambda total, n, weights, values: (total - values.sum(0), n - len(values)),
    ),
    "a mean taken from a sum": (
        exercise.forget,
        lambda total, n, weights, values: (
            total - weights @ values / n,
            n - len(values),
        ),
    ),
    "events added once more": (
        exercise.forget,
        lambda total, n, weights, values: (total + weights @ values, n - len(values)),
    ),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_solutions_pass(check, answer, capsys):
    assert check(answer) is True
    assert "✗" not in capsys.readouterr().out


@pytest.mark.parametrize("check", [check for check, _ in RIGHT])
def test_stubs_are_blank(check, capsys):
    def stub(*_arguments): ...

    assert check(... if check is exercise.phi else stub) is False
    assert capsys.readouterr().out.startswith("○")


@pytest.mark.parametrize("slip", WRONG)
def test_planted_slips_are_caught(slip, capsys):
    check, answer = WRONG[slip]
    assert check(answer) is False
    assert "✗" in capsys.readouterr().out


@pytest.mark.parametrize("number", range(8))
def test_no_other_three_booleans_pass(number):
    answer = [bool(number & bit) for bit in (4, 2, 1)]
    assert exercise.phi(answer) is (answer == [False, True, True])
