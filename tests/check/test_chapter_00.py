"""Chapter 00's exercises: the stub is blank, a right answer passes, wrong ones fail."""

from itertools import groupby

import numpy as np
import pytest
from scipy.special import expit, logit

from recsys_edu.check import chapter_00 as check
from recsys_edu.data.interactions import InteractionLog
from recsys_edu.data.synthetic import planted_world
from recsys_edu.metrics import best_auc
from recsys_edu.ranking import by_request


@pytest.fixture(scope="module")
def log() -> InteractionLog:
    """Several rows of a user share a second, and users end at different times."""
    world = planted_world(seed=0, n_impressions=400, n_users=20, candidates=4)
    assert len(np.unique([world.log.user, world.log.timestamp], axis=1).T) < 300
    return world.log


def said(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out


def stub(*_: object) -> None: ...


@pytest.mark.parametrize("number", [1, 4, 5])
def test_a_stub_is_blank(number, capsys):
    assert not getattr(check, f"exercise_{number}")(stub)
    assert said(capsys).startswith(f"○ Exercise {number}")


@pytest.mark.parametrize("number", [2, 3])
def test_no_answer_is_blank(number, log, capsys):
    assert not getattr(check, f"exercise_{number}")(..., log)
    assert said(capsys).startswith(f"○ Exercise {number}")


def share_right(success, failure, tie=0.5):
    return np.mean((success > failure) + tie * (success == failure))


def requests(label, score, request):
    for r in np.unique(request):
        y, s = label[request == r], score[request == r]
        yield s[y == 1][:, None], s[y == 0]


def right_1(label, score, request):
    both = [(a, b) for a, b in requests(label, score, request) if len(a) and len(b)]
    return np.mean([share_right(a, b) for a, b in both])


def no_ties(label, score, request):
    both = [(a, b) for a, b in requests(label, score, request) if len(a) and len(b)]
    return np.mean([share_right(a, b, tie=0) for a, b in both])


def ties_win(label, score, request):
    both = [(a, b) for a, b in requests(label, score, request) if len(a) and len(b)]
    return np.mean([share_right(a, b, tie=1) for a, b in both])


def pooled(label, score, request):
    return share_right(score[label == 1][:, None], score[label == 0])


def by_pairs(label, score, request):
    return by_request(label, score, request).means().auc_pairs


def one_kind_counts_half(label, score, request):
    found = requests(label, score, request)
    return np.mean([share_right(a, b) if len(a) and len(b) else 0.5 for a, b in found])


def only_neighbours(label, score, request):
    rows = zip(request, label, score, strict=True)
    auc = []
    for _, group in groupby(rows, key=lambda row: row[0]):
        _, y, s = (np.array(column) for column in zip(*group, strict=True))
        if 0 < y.sum() < len(y):
            auc.append(share_right(s[y == 1][:, None], s[y == 0]))
    return np.mean(auc)


def test_exercise_1_right():
    assert check.exercise_1(right_1)


@pytest.mark.parametrize(
    "wrong",
    [no_ties, ties_win, pooled, by_pairs, one_kind_counts_half, only_neighbours],
)
def test_exercise_1_wrong(wrong):
    assert not check.exercise_1(wrong)


def moment_sizes(log):
    return np.unique([log.user, log.timestamp], axis=1, return_counts=True)[1]


def test_exercise_2(log):
    size = moment_sizes(log)
    right = sum(
        int(((log.user == u) & (log.timestamp == t)).sum()) - 1
        for u, t in zip(log.user, log.timestamp, strict=True)
    )
    assert check.exercise_2(right, log)
    itself_too, once, tied = (size**2).sum(), right // 2, size[size > 1].sum()
    for wrong in (itself_too, once, tied, right + 1, 0):
        assert not check.exercise_2(int(wrong), log)


def test_exercise_3(log):
    last = np.array([np.flatnonzero(log.user == u)[-1] for u in np.unique(log.user)])
    rest = np.delete(np.arange(len(log)), last)
    times, train = log.timestamp[last], log.timestamp[rest]
    right = (times < train.max()).mean()
    assert 0 < right < 1 and check.exercise_3(right, log)
    of_the_user = np.mean(
        [
            (
                log.timestamp[rest][log.user[rest] == log.user[r]] > log.timestamp[r]
            ).any()
            for r in last
        ]
    )
    wrongs = (of_the_user, 1 - right, (times < np.median(train)).mean(), right * 100)
    for wrong in wrongs:
        assert not check.exercise_3(float(wrong), log)


def right_4(p, y):
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        q = expit(logit(p) + middle)
        low, high = (low, middle) if q.sum() > y.sum() else (middle, high)
    return q


def platt(p, y):
    """Two constants, a slope too: calibrated, but not what was asked."""
    slope, shift = 1.0, 0.0
    x = logit(p)
    for _ in range(200):
        q = expit(slope * x + shift)
        w = q * (1 - q)
        hessian = np.array(
            [[(w * x * x).sum(), (w * x).sum()], [(w * x).sum(), w.sum()]]
        )
        step = np.linalg.solve(
            hessian + 1e-6 * np.eye(2), [((q - y) * x).sum(), (q - y).sum()]
        )
        slope, shift = slope - 0.5 * step[0], shift - 0.5 * step[1]
    return expit(slope * x + shift)


WRONG_4 = {
    "scaled": lambda p, y: p * y.sum() / p.sum(),
    "added": lambda p, y: p + (y - p).mean(),
    "one step": lambda p, y: expit(logit(p) + logit(y.mean()) - logit(p.mean())),
    "mean of log odds": lambda p, y: expit(
        logit(p) + logit(y.mean()) - logit(p).mean()
    ),
    "base rate": lambda p, y: np.full_like(p, y.mean()),
    "labels": lambda p, y: y.astype(float),
    "platt": platt,
    "as it was": lambda p, y: p,
    "the constant": lambda p, y: logit(right_4(p, y)) - logit(p),
}


def test_exercise_4_right():
    assert check.exercise_4(right_4)


@pytest.mark.parametrize("wrong", WRONG_4)
def test_exercise_4_wrong(wrong):
    assert not check.exercise_4(WRONG_4[wrong])


def ceiling(p, order=lambda e, f: e != f, tie=0.5, weigh=lambda a, b: a * (1 - b)):
    pairs = [(a, b) for e, a in enumerate(p) for f, b in enumerate(p) if order(e, f)]
    total = sum(weigh(a, b) for a, b in pairs)
    right = sum(weigh(a, b) * ((a > b) + tie * (a == b)) for a, b in pairs)
    return right / total


WRONG_5 = {
    "with itself": lambda p: ceiling(p, order=lambda e, f: True),
    "each pair once": lambda p: ceiling(p, order=lambda e, f: e < f),
    "ties lose": lambda p: ceiling(p, tie=0),
    "ties win": lambda p: ceiling(p, tie=1),
    "all pairs alike": lambda p: ceiling(p, weigh=lambda a, b: 1),
    "both succeed": lambda p: ceiling(p, weigh=lambda a, b: a * b),
    "not divided": lambda p: ceiling(p) * len(p),
    "one": lambda p: 1.0,
}


def test_exercise_5_right():
    assert check.exercise_5(ceiling) and check.exercise_5(best_auc)


@pytest.mark.parametrize("wrong", WRONG_5)
def test_exercise_5_wrong(wrong):
    assert not check.exercise_5(WRONG_5[wrong])
