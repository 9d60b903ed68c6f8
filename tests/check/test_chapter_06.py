"""Chapter 06's checks: a stub is blank, a solution passes, planted slips are caught."""

import pytest
import torch
import torch.nn.functional as F

from recsys_edu.check import chapter_06 as exercise


def in_parts(q, pieces, n):
    return sum(F.silu(k @ q * len(q) ** -0.5) @ v for k, v in pieces) / n


def counts(mask, m):
    return mask.cumsum(-1), (mask.sum(-1, keepdim=True) + 1).expand(-1, m)


def exact(seconds):
    return torch.bucketize(seconds, 2 ** torch.arange(1, 26) - 1, right=True)


def fold(q, k, v, bias, mask):
    q = F.pad(q * q.shape[-1] ** -0.5, (0, 1), value=1.0)
    return q, torch.cat([k, bias[..., None]], dim=-1), v * mask[:, None]


def by_minus_infinity(q, k, v, bias, mask):
    return fold(q, k, v, bias.masked_fill(~mask, -torch.inf), mask | True)


def interleave(items, actions, mask, seconds):
    tokens = torch.stack([items, actions], dim=2).flatten(1, 2)
    return tokens, mask.repeat_interleave(2, 1), seconds.repeat_interleave(2, 1)


RIGHT = [
    (exercise.parts, in_parts),
    (exercise.normalisers, counts),
    (exercise.buckets, exact),
    (
        exercise.buckets,
        lambda s: (1 + s.clamp(0)).double().log2().int().clamp(max=25),
    ),
    (exercise.folded, fold),
    (exercise.interleaved, interleave),
]


def concatenated(q, pieces, n):
    k, v = (torch.cat(part) for part in zip(*pieces, strict=True))
    return F.silu(k @ q * len(q) ** -0.5) @ v / n


def by_own_size(q, pieces, n):
    return sum(F.silu(k @ q * len(q) ** -0.5) @ v / max(len(k), 1) for k, v in pieces)


def by_keys(q, pieces, n):
    total = number = 0
    for k, v in pieces:
        total = total + F.silu(k @ q * len(q) ** -0.5) @ v
        number += len(k)
    return total / number


def with_softmax(q, pieces, n):
    return sum((k @ q * len(q) ** -0.5).softmax(0) @ v for k, v in pieces) / n


WRONG = {
    "pieces kept and concatenated": (exercise.parts, concatenated),
    "n ignored": (exercise.parts, by_keys),
    "each piece by its own size": (exercise.parts, by_own_size),
    "a scale for dh = 4": (
        exercise.parts,
        lambda q, pieces, n: sum(F.silu(k @ q / 2) @ v for k, v in pieces) / n,
    ),
    "no scale": (
        exercise.parts,
        lambda q, pieces, n: sum(F.silu(k @ q) @ v for k, v in pieces) / n,
    ),
    "a softmax in each piece": (exercise.parts, with_softmax),
    "the padded length": (
        exercise.normalisers,
        lambda mask, m: (
            torch.full(mask.shape, mask.shape[1]),
            torch.full((len(mask), m), mask.shape[1] + 1),
        ),
    ),
    "the length with all candidates": (
        exercise.normalisers,
        lambda mask, m: (counts(mask, m)[0], counts(mask, m)[1] - 1 + m),
    ),
    "candidates that do not read themselves": (
        exercise.normalisers,
        lambda mask, m: (counts(mask, m)[0], counts(mask, m)[1] - 1),
    ),
    "events that do not read themselves": (
        exercise.normalisers,
        lambda mask, m: (counts(mask, m)[0] - 1, counts(mask, m)[1]),
    ),
    "each candidate behind the one before": (
        exercise.normalisers,
        lambda mask, m: (counts(mask, m)[0], counts(mask, m)[1] + torch.arange(m)),
    ),
    "the longest history for all": (
        exercise.normalisers,
        lambda mask, m: (
            counts(mask, m)[0],
            counts(mask, m)[1].amax(0).expand(len(mask), m),
        ),
    ),
    "float32 rounds up": (
        exercise.buckets,
        lambda s: (1 + s.clamp(0)).float().log2().floor().clamp(max=25),
    ),
    "1.0 makes float32 of it before double does": (
        exercise.buckets,
        lambda s: (1.0 + s.clamp(0)).double().log2().int().clamp(max=25),
    ),
    "no one added": (
        exercise.buckets,
        lambda s: s.clamp(1).double().log2().int().clamp(max=25),
    ),
    "the natural logarithm": (
        exercise.buckets,
        lambda s: (1 + s.clamp(0)).double().log().int().clamp(max=25),
    ),
    "rounded to the nearest": (
        exercise.buckets,
        lambda s: (1 + s.clamp(0)).double().log2().round().clamp(max=25),
    ),
    "no last bucket": (
        exercise.buckets,
        lambda s: (1 + s.clamp(0)).double().log2().int(),
    ),
    "the past of what is to come": (
        exercise.buckets,
        lambda s: (1 + s.abs()).double().log2().int().clamp(max=25),
    ),
    "edges on the wrong side": (
        exercise.buckets,
        lambda s: torch.bucketize(s, 2 ** torch.arange(1, 26) - 1),
    ),
    "a bias that is scaled": (
        exercise.folded,
        lambda q, k, v, b, mask: fold(q, k, v, b * q.shape[-1] ** -0.5, mask),
    ),
    "scores that are not scaled": (
        exercise.folded,
        lambda q, k, v, b, mask: fold(q * q.shape[-1] ** 0.5, k, v, b, mask),
    ),
    "a mask forgotten": (
        exercise.folded,
        lambda q, k, v, b, mask: fold(q, k, v, b, mask | True),
    ),
    "a bias forgotten": (
        exercise.folded,
        lambda q, k, v, b, mask: fold(q, k, v, b * 0, mask),
    ),
    "a mask of keys, whose silu is not zero": (
        exercise.folded,
        lambda q, k, v, b, mask: fold(q, k * mask[:, None], v, b, mask | True),
    ),
    "a softmax's mask": (exercise.folded, by_minus_infinity),
    "items, then actions": (
        exercise.interleaved,
        lambda i, a, mask, s: (
            torch.cat([i, a], 1),
            torch.cat([mask, mask], 1),
            torch.cat([s, s], 1),
        ),
    ),
    "actions before their items": (
        exercise.interleaved,
        lambda i, a, mask, s: interleave(a, i, mask, s),
    ),
    "a sum": (exercise.interleaved, lambda i, a, mask, s: (i + a, mask, s)),
    "a mask of another order": (
        exercise.interleaved,
        lambda i, a, mask, s: (
            interleave(i, a, mask, s)[0],
            torch.cat([mask, mask], 1),
            interleave(i, a, mask, s)[2],
        ),
    ),
    "times of another order": (
        exercise.interleaved,
        lambda i, a, mask, s: (
            *interleave(i, a, mask, s)[:2],
            torch.cat([s, s], 1),
        ),
    ),
}


@pytest.mark.parametrize(("check", "attempt"), RIGHT)
def test_a_solution_passes(check, attempt):
    assert check(attempt) is True


@pytest.mark.parametrize("wrong", WRONG)
def test_a_slip_is_caught(wrong, capsys):
    check, attempt = WRONG[wrong]
    assert check(attempt) is False
    assert "✗" in capsys.readouterr().out


@pytest.mark.parametrize("check", {check for check, _ in RIGHT})
@pytest.mark.parametrize("stub", [..., None, lambda *_: None, lambda *_: ...])
def test_a_stub_is_blank(check, stub, capsys):
    assert check(stub) is False
    assert "not tried yet" in capsys.readouterr().out
