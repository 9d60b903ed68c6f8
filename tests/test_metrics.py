"""Metrics against definitions, loops and draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from recsys_edu.metrics import (
    Interval,
    best_auc,
    difference,
    evaluate,
    expected_auc,
    mean_interval,
    next_run,
)


def test_by_hand():
    label = [1, 0, 1, 0]
    probability = [0.8, 0.6, 0.4, 0.2]
    metrics = evaluate(label, probability)
    assert metrics.auc == 0.75  # 3 of the 4 pairs are in the right order
    loss = -(math.log(0.8) + math.log(0.4) + math.log(0.4) + math.log(0.8)) / 4
    assert metrics.ne == pytest.approx(loss / math.log(2))
    assert metrics.calibration == pytest.approx(1.0)
    assert str(metrics) == "AUC 0.7500, NE 0.8219, calibration 1.000"


def test_predicting_the_base_rate_has_entropy_one():
    metrics = evaluate([1, 0, 0, 0], [0.25] * 4)
    assert metrics.ne == pytest.approx(1.0)
    assert metrics.auc == 0.5


def test_the_base_rate_may_be_another_set_s():
    label, probability = [1, 0, 0, 0], [0.25] * 4
    entropy = {r: -r * math.log(r) - (1 - r) * math.log(1 - r) for r in (0.25, 0.5)}
    metrics = evaluate(label, probability, base_rate=0.5)
    assert metrics.ne == pytest.approx(entropy[0.25] / entropy[0.5])


def test_twice_the_probability_is_twice_the_calibration():
    assert evaluate([1, 0, 0, 0], [0.5] * 4).calibration == pytest.approx(2.0)


def test_tensors_are_welcome_and_certainty_is_finite():
    label, probability = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5])
    assert 36 < evaluate(label, probability).ne * math.log(2) * 2 < 38


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_type_and_with_a_gradient_are_judged_as_their_numbers(dtype):
    label = torch.tensor([True, False, True, False])
    score = torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=dtype, requires_grad=True)
    numbers = score.tolist()
    assert evaluate(label, score) == evaluate(label.tolist(), numbers)
    assert expected_auc(score, score) == best_auc(score) == best_auc(numbers)
    assert type(evaluate(label, score).ne) is float


@pytest.mark.parametrize(
    ("label", "probability", "base_rate", "message"),
    [
        ([1, 0], [0.5], None, r"equally long, got \[2\] and \[1\]"),
        ([[1, 0]], [[0.5, 0.5]], None, r"must be \[E\]"),
        ([1, 1], [0.5, 0.6], None, "got 2 clicks in 2 rows"),
        ([0, 0], [0.5, 0.6], None, "got 0 clicks in 2 rows"),
        ([], [], None, "got 0 clicks in 0 rows"),
        ([1, 2], [0.5, 0.6], None, r"label must be 0 or 1, got 2\.0 in row 1"),
        ([1, math.nan], [0.5, 0.6], None, "label must be 0 or 1, got nan in row 1"),
        ([1, 0], [math.nan, 0.6], None, r"in \[0, 1\], got nan in row 0"),
        ([1, 0], [0.5, 1.5], None, r"in \[0, 1\], got 1\.5 in row 1"),
        ([1, 0], [-0.1, 0.5], None, r"in \[0, 1\], got -0\.1 in row 0"),
        ([1, 0], [0.5, 0.5], 1.0, "base rate must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(label, probability, base_rate, message):
    with pytest.raises(ValueError, match=message):
        evaluate(label, probability, base_rate)


def test_mean_interval():
    # s = 1, n = 4 and t(3) = 3.1824 at 95 %
    interval = mean_interval([-1.0, 1.0, 0.0 - math.sqrt(0.5), math.sqrt(0.5)])
    assert interval.mean == pytest.approx(0.0)
    assert interval.high == pytest.approx(3.18245 / 2, rel=1e-4)
    assert interval.low == pytest.approx(-interval.high)
    assert mean_interval([1.0, 2.0], confidence=0.5).high == pytest.approx(2.0)


def test_an_interval_prints_its_seeds():
    assert str(Interval(0.71234, 0.7111, 0.71358, 5)) == "0.7123 ± 0.0012 (n = 5)"


def test_an_interval_prints_both_bounds_where_half_of_it_would_not_say_them():
    lopsided = Interval(0.71234, 0.7101, 0.71358, 94)
    assert str(lopsided) == "0.7123 (0.7101 to 0.7136; n = 94)"
    assert "(-0.0040 to 0.0010; n" in str(Interval(-0.002, -0.004, 0.001, 7))
    assert str(Interval(0.0, 0.0, 0.0, 3)) == "0.0000 ± 0.0000 (n = 3)"


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=9),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=9),
)
def test_student_s_intervals_print_half_of_theirs(a, b):
    spread = min(np.std(a), np.std(b))
    assume(spread > 1e-3)  # of numbers up to 1e4, known to 1e-12
    for interval in (mean_interval(a), next_run(a), difference(a, b)):
        assert "±" in str(interval)


def test_a_difference_is_welch_s():
    # Means 2 and 5; s^2/n = 1/3 and 4/3, so se = sqrt(5/3); Welch's df = 50/17.
    a, b = [1.0, 2.0, 3.0], [3.0, 5.0, 7.0]
    half = stats.t.ppf(0.975, 50 / 17) * math.sqrt(5 / 3)
    gap = difference(a, b)
    assert (gap.mean, gap.n) == (pytest.approx(-3.0), 3)
    assert (gap.low, gap.high) == (pytest.approx(-3 - half), pytest.approx(-3 + half))
    assert difference(b, a).mean == pytest.approx(3.0)
    assert difference(a, [*b, 5.0]).n == 3
    with pytest.raises(ValueError, match="at least 2 values of each, got 1"):
        difference(a, [1.0])


def test_one_more_run_falls_where_it_is_expected_as_often_as_promised():
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        *runs, new = rng.normal(0.77, 0.001, 6)
        held += new in next_run(runs, confidence=0.9)
    # A binomial of 2000 with p = 0.9: four standard deviations are 54.
    assert abs(held - 1800) <= 54
    assert next_run([1.0, 2.0, 3.0]).mean == 2.0


def test_an_interval_contains_its_ends():
    interval = Interval(0.5, 0.4, 0.6, 5)
    assert all(value in interval for value in (0.4, 0.5, 0.6))
    assert 0.39 not in interval and 0.61 not in interval


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        mean_interval([0.7])


def loop(score, p):
    right = total = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            if i != j:
                weight = p[i] * (1 - p[j])
                total += weight
                right += weight * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    return right / total


probabilities = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), probabilities),
        min_size=2,
        max_size=12,
    )
)
def test_expected_auc_equals_the_double_loop(rows):
    score, p = map(np.array, zip(*rows, strict=True))
    assume(p.sum() * (1 - p).sum() - p @ (1 - p) > 1e-9)
    assert expected_auc(score, p) == pytest.approx(loop(score, p), rel=1e-9)
    assert best_auc(p) == pytest.approx(loop(p, p), rel=1e-9)


@given(
    p=arrays(np.float64, 9, elements=st.floats(0.05, 0.95)),
    score=arrays(np.float64, 9, elements=st.floats(-1, 1)),
)
def test_no_score_beats_the_true_probabilities(p, score):
    assert expected_auc(score, p) <= best_auc(p) + 1e-12


@given(seed=st.integers(0, 2**16))
def test_drawn_labels_agree(seed):
    """Pairs in order over pairs, both summed over many draws of the labels."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 0.95, 8).round(1)
    score = rng.integers(0, 4, 8).astype(float)
    labels = rng.random((4000, 8)) < p  # [draws, E]
    order = np.sign(score[:, None] - score[None, :]) / 2 + 0.5  # [E, E]
    clicked, skipped = labels.astype(float), 1.0 - labels
    right = np.einsum("di,dj,ij->d", clicked, skipped, order)
    total = clicked.sum(1) * skipped.sum(1)
    drawn = right.sum() / total.sum()
    # Standard error of a ratio of sums; six of them is one failure in 500 million.
    error = np.std(right - drawn * total) / math.sqrt(len(total)) / total.mean()
    assert abs(expected_auc(score, p) - drawn) < 6 * error + 1e-12


def test_a_planted_ceiling_stays_below_one():
    assert best_auc([0.5] * 10) == 0.5
    assert best_auc([1.0, 0.0]) == 1.0
    assert 0.5 < best_auc([0.6, 0.4]) < 1.0


@pytest.mark.parametrize(
    ("score", "p", "message"),
    [
        ([1.0], [0.1], "no pair"),
        ([], [], "no pair"),
        ([1.0, 2.0], [1.0, 1.0], "no pair"),
        ([1.0, math.nan], [0.5, 0.5], "score must be numbers, got nan in row 1"),
        ([1.0, 2.0], [0.5, 1.2], r"p must be in \[0, 1\], got 1\.2 in row 1"),
        ([1.0], [0.5, 0.5], "equally long"),
    ],
)
def test_expected_auc_refuses(score, p, message):
    with pytest.raises(ValueError, match=message):
        expected_auc(score, p)
