"""Chapter 08's exercises: stubs and wrong answers fail, the page's solutions pass."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recsys_edu.attention.xor import xor_attention
from recsys_edu.check import chapter_08 as check

PAGE = Path(__file__).parents[2] / "chapters" / "08_lime_xor.ipynb"
CELLS = {cell["id"]: cell for cell in json.loads(PAGE.read_text())["cells"]}
EXERCISES = range(1, 6)


def run(cell, **names):
    names |= {"torch": torch, "F": F, "check": check}
    names |= {"N": 1024, "D": 64, "CHUNK": 128}
    exec("".join(CELLS[cell]["source"]), names)


@pytest.mark.parametrize("number", EXERCISES)
def test_the_stub_is_not_tried_yet(number, capsys):
    run(f"attempt-{number}")
    assert capsys.readouterr().out.startswith(f"○ Exercise {number}: not tried yet")


@pytest.mark.parametrize("number", EXERCISES)
def test_the_pages_solution_passes(number, capsys):
    run(f"solution-{number}")
    assert capsys.readouterr().out.startswith(f"✓ Exercise {number}")


def half(weigh=F.silu, *, scale=True, by=lambda q, k: max(len(k), 1)):
    def attempt(q, k, v):
        scores = q @ k.T * (q.shape[-1] ** -0.5 if scale else 1)
        return weigh(scores) @ v / by(q, k)

    return attempt


@pytest.mark.parametrize(
    "attempt",
    [
        half(scale=False),
        half(by=lambda q, k: 1),
        half(by=lambda q, k: len(k)),  # 0 / 0 of an empty history
        half(by=lambda q, k: len(q)),
        half(by=lambda q, k: 5),
        half(lambda scores: scores.softmax(-1), by=lambda q, k: 1),
        half(lambda scores: scores),
        half(F.relu),
        lambda q, k, v: F.silu(q @ k.T / 2) @ v / max(len(k), 1),  # 2 = sqrt(4)
        lambda q, k, v: torch.zeros_like(q),
    ],
)
def test_wrong_links_halves_fail(attempt):
    assert not check.links_half(attempt)


def halves(*, mask_events=True, count=None, later=False, share=None):
    """The linear form, with a fault for each argument that is given."""

    def attempt(block, links, events, mask):
        allowed = mask[:, None, None, :] if mask_events else None
        n = mask.sum(-1).clamp(min=1)[:, None, None, None]
        n = n if count is None else count(mask)
        read = block(links, *block.keys_values(events), allowed, n)
        asked = block.keys_values(read if later else links)
        return read, block(events, *asked, None, share or links.shape[1])

    return attempt


def from_memory(block, links, events, mask):
    n = events.shape[1]
    links = block(links, *block.keys_values(events), None, n)
    events = block(events, *block.keys_values(links), None, links.shape[1])
    return links, events


def links_last(block, links, events, mask):
    told = block(events, *block.keys_values(links), None, links.shape[1])
    return halves()(block, links, told, mask)[0], told


def wrong_way_round(*case):
    return halves()(*case)[::-1]


def frozen(block, links, events, mask):
    return halves()(block, links, events, mask)[0], events


def test_the_linear_form_with_no_fault_passes():
    assert check.two_calls(halves())
    assert check.two_calls(xor_attention)


@pytest.mark.parametrize(
    "attempt",
    [
        from_memory,
        halves(mask_events=False),
        halves(later=True),
        halves(count=lambda mask: mask.shape[1]),
        halves(count=lambda mask: 1),
        halves(count=lambda mask: mask.sum(-1)[:, None, None, None]),  # 0 / 0
        halves(count=lambda mask: mask.sum()),
        halves(share=1),
        halves(share=6),  # N, where r is 3
        links_last,
        frozen,
        wrong_way_round,
        lambda block, links, events, mask: links,
    ],
)
def test_wrong_blocks_fail(attempt):
    assert not check.two_calls(attempt)


def scores(block, links, events):
    return block.gate_queries(links)[1] @ block.keys_values(events)[0].mT


def scaled(block, links, events):
    split = scores(block, links, events)
    return split * (links.shape[-1] // split.shape[1]) ** -0.5


def orthogonal(block, links, events):
    part = block.key_value.weight[: links.shape[-1]]
    return bool(torch.dist(part @ part.T, torch.eye(len(part))) < 1e-2)


def without_silu(block, links, events):
    d = links.shape[-1]
    q = block.gate_query(block.norm(links))[..., d:]
    k = block.key_value(block.norm(events))[..., :d]
    return bool((q @ k.mT * (d // block.heads) ** -0.5).std() > check.LOUD)


def by_gates(block, links, events):
    gates, _ = block.gate_queries(links)
    return bool(gates.std() > check.LOUD)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda *case: True,
        lambda *case: False,
        lambda *case: bool(scores(*case).std() > check.LOUD),  # unscaled
        lambda *case: bool(scaled(*case).mean() > check.LOUD),
        lambda *case: bool(scaled(*case).std() < check.LOUD),
        lambda block, links, events: bool(
            block.keys_values(events)[0].std() > check.LOUD
        ),
        orthogonal,
        without_silu,
        by_gates,
    ],
)
def test_wrong_tests_of_a_start_fail(attempt):
    with torch.no_grad():
        assert not check.loud_start(attempt)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda n, w: 8,
        lambda n, w: (n - 1) // (w - 1),
        lambda n, w: -(-n // w),
        lambda n, w: -(-n // (w - 1)),
        lambda n, w: -(-(n - 1) // w),
        lambda n, w: (n - 1) // (w - 1) + 1,
        lambda n, w: 2,
    ],
)
def test_wrong_counts_of_blocks_fail(attempt):
    assert not check.blocks_until_heard(attempt)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda n, d, c: 4 * n**2 * d // (10 * d**2 + 8 * n * d),  # all pairs
        lambda n, d, c: 2 * n * (n + c) * d // (8 * n * d),  # maps of links for free
        lambda n, d, c: 2 * n * (n + c) * d // (10 * d**2 + 8 * n * d) + 1,
        lambda n, d, c: 2 * n * (n + c) * d // (10 * d**2 + 4 * n * d),
        lambda n, d, c: 267,
    ],
)
def test_wrong_counts_of_links_fail(attempt):
    assert not check.most_links(attempt)
