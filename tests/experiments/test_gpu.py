"""The GPU recorder: a dry run of every line, and no time for what is wrong."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from recsys_edu.attention import kernels
from recsys_edu.cost import Cost, Device, count
from recsys_edu.experiments import gpu, gpu_work
from recsys_edu.experiments.gpu_work import TINY, Form, Piece, Plan, Truth
from recsys_edu.scoring.strategies import naive

pytest.importorskip("triton")

CUDA = torch.cuda.is_available()
TIMED = {"error", "allowed", "seconds", "low", "high", "rounds", "repeats", "times"}
TIMED |= {"flops", "bytes", "cache", "form"}
CARD = gpu.Card(Device("abacus", {torch.float32: 100.0}, 10.0, "here"), None, 0)


@pytest.fixture(scope="module")
def rows():
    """A dry run."""
    return list(gpu.runs(plan=TINY))


def test_every_form_of_every_piece_is_timed_or_says_why_not(rows):
    forms = {}
    for row in rows:
        if row["part"] == "roof":
            continue
        forms.setdefault(row["part"], set()).add(row["form"])
        if "skipped" in row:
            assert row["skipped"] and not row.keys() & {"seconds", "failed", "error"}
        else:
            assert row.keys() >= TIMED and "failed" not in row
            assert row["error"] <= row["allowed"]
            assert 0 < row["low"] <= row["seconds"] <= row["high"]
    kernel = {"eager", "compile", "triton"}
    softmax = {"sdpa, with a mask", "flash", "efficient", "cudnn", "math", "flex"}
    lime = {f"LIME-XOR, {how}" for how in ("index on the CPU", "index on the card")}
    assert forms == {
        "xor": kernel,
        "links": kernel,
        "candidates": kernel | softmax,
        "requests": {"HSTU, b = 4", "LIME-XOR, Triton", *lime},
        "naive": {"naive", "amortized"},
        "small request": {"eager", "compile", "graph", "compile, graph"},
        "copy of a cache": {"recompute", "copy", "copy, pinned"},
        "copy of rows": {f"gather{how}" for how in (" on the card", ", copy")}
        | {"gather, copy, pinned"},
    }


def test_the_first_form_is_the_unit_of_times(rows):
    for row in rows:
        if row.get("form") in ("eager", "naive", "recompute", "gather on the card"):
            assert row["times"] == 1


def test_the_roofs_come_first(rows):
    roofs = [row for row in rows if row["part"] == "roof"]
    assert rows[: len(roofs)] == roofs
    assert [row["form"] for row in roofs][:2] == ["copy", "product, float32"]
    assert all(row["rate"] > 0 for row in roofs if "skipped" not in row)


@pytest.mark.skipif(CUDA, reason="these run on a GPU")
def test_what_a_cpu_cannot_do_is_skipped_with_its_reason(rows):
    reasons = {
        (row["form"], row.get("dtype")): row["skipped"]
        for row in rows
        if "skipped" in row
    }
    assert "interpreter multiplies bfloat16" in reasons["triton", "bfloat16"]
    assert "No viable backend" in reasons["efficient", "float32"]
    assert "GPU" in reasons["graph", "float32"]
    assert "pinned" in reasons["copy, pinned", "float32"]
    assert {form for form, _ in reasons} == {
        *("triton", "efficient", "cudnn", "graph", "compile, graph"),
        *("copy, pinned", "gather, copy, pinned"),
    }
    assert not any("peak_bytes" in row for row in rows)


def piece_of(run, *, exact=1.0, allowed=0.5, **options):
    """Two forms, the second of them ``run``; a result should be ``exact``."""

    def sample(result):
        return (result,)

    truth = Truth(sample, (torch.tensor([exact]).double(),), (allowed,))
    forms = {"plain": lambda: torch.tensor([exact]), "other": run}
    made = {name: Form(form, truth, Cost(20, 4)) for name, form in forms.items()}
    made["other"] = replace(made["other"], **options)
    return Piece(made, torch.float32)


def other(run, **options):
    """The row of ``run``, after that of the plain form."""
    plain, row = gpu.measure({}, piece_of(run, **options), CARD, TINY)
    assert "seconds" in plain
    return row


@pytest.mark.parametrize("result", [1.6, 0.4, float("nan"), float("inf")])
def test_a_wrong_result_is_a_failed_check_and_no_time(result):
    row = other(lambda: torch.tensor([result]))
    assert row["failed"].startswith("off by") and "allowed 5.0e-01" in row["failed"]
    assert "seconds" not in row and row["allowed"] == 0.5


def test_a_right_result_is_timed():
    row = other(lambda: torch.tensor([1.4]))
    assert row["error"] == pytest.approx(0.4) and row["seconds"] > 0
    # 20 FLOP at 100 a second, 4 bytes at 10 a second: 0.4 s.
    assert row["of_measured"] == pytest.approx(0.4 / row["seconds"], rel=1e-3)
    assert "of_sheet" not in row and row["flops"] == 20 and row["bytes"] == 4


def test_launches_of_short_calls_alone_are_counted(monkeypatch):
    assert {"launches", "kernels"} <= other(lambda: torch.tensor([1.0])).keys()
    monkeypatch.setattr(gpu, "TRACED", 0.0)
    assert not {"launches", "kernels"} & other(lambda: torch.tensor([1.0])).keys()


@torch.no_grad()
def test_whole_requests_are_held_to_eight_scores_the_last_among_them():
    """And to roundings of numbers of size one, since random scores are near zero."""
    request = gpu_work.request_of(TINY, 4, 100)
    truth = gpu_work.truth_of(TINY, "HSTU", request)
    sampled = truth.sample(torch.arange(100)[None])[0][0].tolist()
    assert len(sampled) == 8 and max(sampled) == 99
    assert 65 * 2**-24 <= truth.allowed[0] < 2 * 65 * 2**-24
    scores = naive(gpu_work.ranker("HSTU", TINY.items), request)
    assert truth.miss(scores)[0] <= truth.allowed[0]
    scores[0, 99] += 1e-3
    assert truth.miss(scores)[0] > truth.allowed[0]


@torch.no_grad()
def test_naive_scoring_costs_a_pass_a_candidate():
    piece = gpu_work.against_naive(TINY, "HSTU")
    whole = count(piece.forms["naive"].run)
    assert piece.forms["naive"].cost.flops == whole.flops
    assert piece.forms["naive"].cost.bytes == pytest.approx(whole.bytes, rel=1e-3)


def test_a_result_of_another_shape_is_wrong():
    row = other(lambda: torch.tensor([1.0, 1.0]))
    assert "torch.Size([2])" in row["failed"] and "seconds" not in row


def raises(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (torch.OutOfMemoryError("Tried to allocate"), "skipped"),
        (ValueError("form='triton' cannot run: triton is not installed"), "skipped"),
        (RuntimeError("No available kernel. Aborting execution."), "skipped"),
        (ValueError("sizes do not match\nand more"), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_an_error_is_a_row_with_its_first_line(error, key):
    row = other(raises(error))
    assert not row.keys() & {"seconds", "error"}
    assert row[key].startswith(type(error).__name__) and "\n" not in row[key]


def test_a_known_obstacle_is_not_run_into():
    row = other(raises(SystemExit), obstacle="no such card")
    assert row["skipped"] == "no such card"


def test_a_wrong_kernel_is_found(monkeypatch):
    def wrong(*args, form, **options):
        out = kernels.fuse_links(*args, form=form, **options)
        out[:, -1] *= 1.01 if form == "triton" else 1
        return out

    monkeypatch.setattr(gpu_work, "fuse_links", wrong)
    piece = gpu_work.link_scoring(replace(TINY, links=(200,)), 200, torch.float32)
    rows = {row["form"]: row for row in gpu.measure({}, piece, CARD, TINY)}
    assert "off by" in rows["triton"]["failed"] and "seconds" not in rows["triton"]
    assert "seconds" in rows["eager"]


def test_a_wrong_gradient_is_found(monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, g):
            return 1.01 * g

    def wrong(links, events, mask, *, form):
        read = kernels.xor_attend(links, events, mask, form="reference")
        return [Wrong.apply(x) for x in read] if form == "triton" else read

    monkeypatch.setattr(gpu_work, "xor_attend", wrong)
    found = {}
    for make in (gpu_work.xor_forward, gpu_work.xor_training):
        forms = make(TINY, 6, torch.float32)
        found[make] = gpu.checked(forms.forms["triton"], forms.inputs[0])
    assert "failed" not in found[gpu_work.xor_forward]
    assert "off by" in found[gpu_work.xor_training]["failed"]


def test_a_piece_that_cannot_be_made_is_a_row(monkeypatch):
    made = [
        ({"part": "large"}, raises(torch.OutOfMemoryError("no room"))),
        ({"part": "broken"}, raises(KeyError("item"))),
        ({"part": "fine"}, partial(piece_of, lambda: torch.tensor([1.0]))),
    ]
    monkeypatch.setattr(gpu_work, "pieces", lambda plan: made)
    monkeypatch.setattr(gpu.Card, "at_hand", lambda plan: CARD)
    large, broken, *fine = list(gpu.runs(plan=TINY))[2 - CUDA :][-4:]
    assert large == {"part": "large", "skipped": "OutOfMemoryError: no room"}
    assert broken["failed"].startswith("KeyError")
    assert all("seconds" in row for row in fine)


def test_when_time_is_up_the_rest_is_skipped():
    rows = list(gpu.runs(plan=replace(TINY, seconds=0.0)))
    pieces = [where for where, _ in gpu_work.pieces(TINY)]
    left = [row for row in rows if row["part"] != "roof"]
    assert left == [where | {"skipped": "0 s were over"} for where in pieces]


def test_without_a_gpu_there_is_nothing_to_record(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA GPU"):
        next(gpu.runs())
    with pytest.raises(ValueError, match="name none"):
        next(gpu.runs(["triton"]))


def test_the_card_s_roofs_are_held_against_its_sheet():
    sheet = Device("sheet", {torch.float32: 200.0}, 40.0, "paper")
    card = replace(CARD, sheet=sheet)
    assert list(card.roofs())[:2] == [
        {"part": "roof", "form": "copy", "rate": 10.0, "of_sheet": 0.25},
        {"part": "roof", "form": "product, float32", "rate": 100.0, "of_sheet": 0.5},
    ]
    # 400 FLOP take 4 s at the measured roof and 2 s at that of the sheet.
    fractions = card.fractions(Cost(400, 1), torch.float32, 8.0)
    assert fractions == {"of_measured": 0.5, "of_sheet": 0.25}
    assert card.fractions(Cost(1, 1), torch.float16, 1.0) == {}


def test_the_budget_is_twice_the_reference_s_error_and_some_roundings():
    exact = torch.tensor([3.0, -4.0]).double()
    plain = torch.tensor([3.25, -4.0])
    low = Truth.between(tuple, [plain.bfloat16()], [exact])
    assert low.allowed == (pytest.approx(0.5 + 4 * (2**-8 + 2**-18)),)
    small = Truth.between(tuple, [plain], [exact], size=8.0)
    assert small.allowed == (pytest.approx(0.5 + 8 * (2**-18 + 2**-24)),)


def test_the_result_that_misses_most_is_told():
    exact = tuple(torch.zeros(1).double() for _ in range(3))
    truth = Truth(lambda results: results, exact, (1.0, 5.0, 1.0))
    results = [torch.tensor([x]) for x in (0.5, 4.0, 3.0)]
    assert truth.miss(results) == (3.0, 1.0)


def test_inputs_take_turns():
    run = gpu.turning(lambda x: x, [(1,), (2,), (3,)])
    assert [run() for _ in range(5)] == [1, 2, 3, 1, 2]


@pytest.mark.parametrize(("cache", "inputs"), [(39, 1), (40, 2), (200, 6), (10**6, 16)])
def test_inputs_are_twice_the_cache_in_all(monkeypatch, cache, inputs):
    properties = SimpleNamespace(L2_cache_size=cache)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    made = gpu_work.enough(lambda: (torch.zeros(20),))  # 80 bytes
    assert len(made) == inputs


def test_what_the_cpu_asks_of_the_card_is_counted(monkeypatch):
    def row(key, count, device=DeviceType.CPU):
        return SimpleNamespace(key=key, count=count, device_type=device)

    seen = [
        row("aten::mm", 7),
        row("cudaLaunchKernel", 3),
        row("cuLaunchKernelEx", 2),
        row("cudaGraphLaunch", 1),
        row("cudaMemcpyAsync", 1),
        row("cudaDeviceSynchronize", 1),
        row("ampere_sgemm", 40, DeviceType.CUDA),
    ]

    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return SimpleNamespace(key_averages=lambda: seen)

        def __exit__(self, *_):
            calls.append("left")

    calls = []
    monkeypatch.setattr(gpu, "profile", Profile)
    found = gpu.launches(lambda: calls.append("run"))
    assert found == {"launches": 7, "kernels": 40} and calls == ["run", "left"]


def test_a_card_without_bfloat16_takes_float16_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    dtypes = {where.get("dtype") for where, _ in gpu_work.pieces(Plan())}
    assert dtypes == {"float32", "float16", None}
    assert "no bfloat16" in list(CARD.roofs())[-1]["skipped"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert gpu_work.low_type() == torch.bfloat16


def test_the_plan_has_the_sizes_that_the_book_asks_about():
    plan = [where for where, _ in gpu_work.pieces(Plan())]

    def sizes(part, *keys):
        return {tuple(w[key] for key in keys) for w in plan if w["part"] == part}

    assert sizes("xor", "N", "B", "r") == {(n, 64, 32) for n in (1024, 4096, 16_384)}
    assert sizes("links", "M", "r", "d") == {(2**k, 32, 64) for k in (14, 17, 20)}
    pairs = {(n, m) for n in (1024, 16_384) for m in (512, 4096, 32_768)}
    assert sizes("candidates", "N", "M") == pairs
    assert sizes("requests", "N", "M") == {(1024, 32_768), (16_384, 512)}
    assert sizes("naive", "N", "M") == {(256, 512)}
    assert sizes("small request", "N", "M") == {(64, 64)}


def test_the_work_s_flops_are_those_of_plain_pytorch():
    """But for training, whose kernel computes scores a second time."""
    pieces = [
        gpu_work.xor_forward(TINY, 6, torch.float32),
        gpu_work.link_scoring(TINY, 5, torch.float32),
        gpu_work.softmax(TINY, 6, 5, torch.float32),
        gpu_work.pointwise(TINY, 6, 5, torch.float32),
    ]
    with torch.no_grad():
        for piece in pieces:
            eager = next(iter(piece.forms.values()))
            assert count(eager.run, *piece.inputs[0]).flops == eager.cost.flops
            assert eager.cost.bytes > 0


@torch.no_grad()
def test_the_fused_ranker_is_the_other_one():
    """Its weights too, so that one truth serves both."""
    plain, fused = (
        gpu_work.ranker(name, 40) for name in ("LIME-XOR", "LIME-XOR, fused")
    )
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        assert torch.equal(a, b)
    assert fused.encoder.form == "fused"
