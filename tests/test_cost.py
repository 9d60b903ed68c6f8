"""Counts against integers worked out by hand, in elements times bytes per element."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from recsys_edu import bench
from recsys_edu.cost import (
    DEVICES,
    Clock,
    Cost,
    Device,
    binding_roof,
    count,
    data_sheet,
    hardware,
    measure_this_machine,
    nbytes,
    roofline_seconds,
)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def test_clocks_name_themselves():
    assert [clock.label for clock in Clock] == [
        "item clock",
        "request clock",
        "candidate clock",
    ]
    assert Clock.CANDIDATE.tick == "per candidate"


def test_costs_add_and_scale():
    request, candidate = Cost(100, 40), Cost(3, 2)
    assert request + 512 * candidate == Cost(1636, 1064)
    assert sum([request, candidate], Cost()) == Cost(103, 42)


def test_intensity_is_flops_per_byte():
    assert Cost(100, 40).intensity == 2.5
    assert Cost(0, 40).intensity == 0.0
    assert Cost(1, 0).intensity == float("inf")
    assert Cost().intensity == 0.0


def test_linear():
    # Reads x [4, 8], W [3, 8] and b [3]; writes y [4, 3].
    assert count(nn.Linear(8, 3), ones(4, 8)) == Cost(
        2 * 4 * 8 * 3, (4 * 8 + 3 * 8 + 3 + 4 * 3) * 4
    )


def test_linear_on_a_batch_of_sequences_reads_its_weights_once():
    assert count(nn.Linear(8, 3), ones(2, 5, 8)) == Cost(
        2 * 10 * 8 * 3, (10 * 8 + 3 * 8 + 3 + 10 * 3) * 4
    )


def test_bytes_follow_the_element_size():
    x, w = ones(4, 8).bfloat16(), ones(8, 3).bfloat16()
    assert count(torch.mm, x, w) == Cost(192, (32 + 24 + 12) * 2)


def test_einsum():
    # [b, m, d] x [b, n, d] -> [b, m, n] with b=2, m=3, n=5, d=4
    cost = count(torch.einsum, "bmd,bnd->bmn", ones(2, 3, 4), ones(2, 5, 4))
    assert cost == Cost(2 * 2 * 3 * 5 * 4, (24 + 40 + 30) * 4)


def test_products_with_vectors():
    assert count(torch.mv, ones(6, 8), ones(8)) == Cost(96, (48 + 8 + 6) * 4)
    assert count(torch.dot, ones(8), 2 * ones(8)) == Cost(16, (8 + 8 + 1) * 4)
    assert count(torch.addmv, ones(6), ones(6, 8), ones(8)).flops == 96
    assert count(torch.vdot, ones(8), ones(8)).flops == 16


def test_convolution():
    # 6 channels in, 2 out, window 3: 6 positions of 6 * 3 multiply-adds per channel
    cost = count(nn.Conv1d(6, 2, 3, bias=False), ones(1, 6, 8))
    assert cost.flops == 2 * 2 * 6 * 6 * 3


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def test_attention_is_counted_with_its_scores_in_memory():
    # [B=1, H=2, M=3, d=4] queries over N=5 keys
    q, k, v = ones(1, 2, 3, 4), ones(1, 2, 5, 4), 2 * ones(1, 2, 5, 4)
    scale = 2 * 24 + 2 * 40  # q and k, each read and written
    scores, softmax, values = 24 + 40 + 30, 30 + 30, 30 + 40 + 24
    assert count(sdpa, q, k, v) == Cost(
        2 * 2 * (2 * 3 * 5 * 4), (scale + scores + softmax + values) * 4
    )


def test_attention_form_can_be_chosen_inside():
    def flash(q, k, v):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa(q, k, v)

    q, k, v = (i * ones(1, 2, 5, 4) for i in (1, 2, 3))
    fused = count(flash, q, k, v)
    assert fused.flops == count(sdpa, q, k, v).flops
    # q, k, v read, the output written, and one log-sum-exp [H, M] kept
    assert fused.bytes == (4 * 40 + 10) * 4


def test_elementwise_reads_and_writes():
    x = ones(10)
    assert count(torch.relu, x) == Cost(0, (10 + 10) * 4)
    assert count(torch.add, x, 2 * x) == Cost(0, (10 + 10 + 10) * 4)


def test_an_operand_given_twice_is_read_once():
    x = ones(10)
    assert count(torch.mul, x, x) == Cost(0, (10 + 10) * 4)
    # Two parts of one storage are different bytes.
    assert count(torch.mul, x[:5], x[5:]) == Cost(0, (5 + 5 + 5) * 4)


def test_an_expanded_tensor_is_read_once():
    row = ones(3)
    assert count(torch.relu, row.expand(4, 3)) == Cost(0, (3 + 12) * 4)
    column = ones(3, 2)[:, 0]
    assert count(torch.relu, column.expand(4, 3)) == Cost(0, (3 + 12) * 4)


def test_overlapping_windows_touch_what_lies_under_them():
    windows = ones(10).unfold(0, 3, 1)  # [8, 3] over 10 elements
    assert count(torch.relu, windows) == Cost(0, (10 + 24) * 4)


def test_views_and_allocations_are_free():
    def only_views(x):
        a, b = x.view(2, 15).t().reshape(3, 5, 2).chunk(2, dim=-1)
        a.unsqueeze(0).expand(7, 3, 5, 1).detach()
        b.squeeze_(-1).transpose_(0, 1)
        return torch.empty(5), torch.empty_like(x), x.contiguous()

    assert count(only_views, ones(30)) == Cost(0, 0)


def test_a_reshape_that_must_copy_pays():
    assert count(lambda x: x.t().reshape(-1), ones(3, 5)) == Cost(0, 2 * 15 * 4)


def test_fills_write_only():
    x = ones(10)
    assert count(torch.zeros, 10) == Cost(0, 40)
    assert count(torch.zeros_like, x) == Cost(0, 40)
    assert count(x.zero_) == Cost(0, 40)
    assert count(x.uniform_) == Cost(0, 40)


def test_in_place_is_one_read_and_one_write():
    x = ones(10)
    assert count(x.relu_) == Cost(0, (10 + 10) * 4)
    assert count(x.add_, 2 * ones(10)) == Cost(0, (10 + 10 + 10) * 4)


def test_out_is_written_and_not_read():
    x, y, out = ones(10), 2 * ones(10), ones(10)
    assert count(lambda: torch.add(x, y, out=out)) == Cost(0, (10 + 10 + 10) * 4)


def test_writing_into_a_cache_moves_the_slice():
    cache = ones(2, 1000, 8)

    def append(new):
        cache[:, 3:5] = new

    assert count(append, ones(2, 2, 8)) == Cost(0, (32 + 32) * 4)


LOOKUP = (6 * 4 + 6 * 4) * 4 + 6 * 8  # 6 rows of 4 floats, 6 int64 indices


@pytest.mark.parametrize(
    "lookup",
    [
        lambda table, rows: F.embedding(rows, table),
        lambda table, rows: table[rows],
        lambda table, rows: table.index_select(0, rows.view(-1)),
    ],
)
def test_a_lookup_reads_its_rows_and_not_the_table(lookup):
    rows = torch.tensor([[1, 2, 0], [3, 3, 999]])
    assert count(lookup, ones(1000, 4), rows) == Cost(0, LOOKUP)


def test_gather_reads_what_it_gathers():
    index = torch.tensor([[7], [8]])
    cost = count(torch.gather, ones(2, 1000), 1, index)
    assert cost == Cost(0, (2 + 2) * 4 + 2 * 8)


def test_an_embedding_bag_reads_rows_and_writes_sums():
    bag = nn.EmbeddingBag(1000, 4, mode="sum")
    rows, starts = torch.tensor([1, 2, 0, 3, 3, 9]), torch.tensor([0, 3])
    expected = Cost(0, (6 * 4 + 2 * 4) * 4 + (6 + 2) * 8)
    assert count(bag, rows, starts) == expected
    with torch.no_grad():
        assert count(bag, rows, starts) == expected


def tower() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Dropout(0.1), nn.Linear(16, 1)
    ).eval()


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode]
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_gradients_do_not_change_the_count(mode, requires_grad):
    model, x = tower(), ones(4, 8).requires_grad_(requires_grad)
    hidden = Cost(2 * 4 * 8 * 16, (32 + 128 + 16 + 64) * 4)
    relu = Cost(0, (64 + 64) * 4)
    head = Cost(2 * 4 * 16, (64 + 16 + 1 + 4) * 4)
    with mode():
        assert count(model, x) == hidden + relu + head


def test_attention_modules_are_counted_without_gradients_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = ones(4, 6, 8)
    with torch.no_grad():
        without = count(layer, x)
    assert without == count(layer, x)
    projections, mlp = 4 * 8 * 8, 2 * 8 * 16
    attention = 2 * 6 * 8
    assert without.flops == 2 * 4 * 6 * (projections + mlp + attention)


def test_the_backward_pass_costs_two_more_products():
    x, w = ones(4, 8).requires_grad_(), ones(8, 3).requires_grad_()
    assert count(lambda: (x @ w).sum().backward()).flops == 3 * (2 * 4 * 8 * 3)


def test_meta_tensors_are_counted_without_computing():
    model, x = tower(), ones(4, 8)
    assert count(model.to("meta"), x.to("meta")) == count(tower(), x)


def test_operations_that_hide_their_products_are_refused():
    with pytest.raises(ValueError, match=r"no FLOP formula for aten\._trilinear"):
        count(nn.Bilinear(3, 3, 2), ones(1, 3), ones(1, 3))


def test_counting_leaves_no_setting_behind_even_after_an_error():
    def settings():
        return (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
        )

    torch.backends.mha.set_fastpath_enabled(True)
    before = settings()
    with pytest.raises(ZeroDivisionError):
        count(lambda: 1 / 0)
    assert settings() == before


@given(m=st.integers(1, 9), k=st.integers(1, 9), n=st.integers(1, 9))
def test_any_product(m, k, n):
    cost = count(torch.matmul, ones(m, k), ones(k, n))
    assert cost == Cost(2 * m * k * n, 4 * (m * k + k * n + m * n))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_the_cost_of_a_chain_is_the_sum_of_its_links(widths):
    links = [nn.Linear(a, b) for a, b in pairwise(widths)]
    parts = [count(link, ones(3, link.in_features)) for link in links]
    assert count(nn.Sequential(*links), ones(3, widths[0])) == sum(parts, Cost())


@dataclass
class Code:
    key: torch.Tensor
    value: torch.Tensor
    length: int
    name: str = "code"


def test_nbytes_counts_each_storage_once_and_whole():
    x = ones(10, 8)
    assert nbytes(x) == 320
    assert nbytes(x[:2]) == 320  # the view keeps the other rows alive
    assert nbytes(x.expand(5, 10, 8)) == 320
    assert nbytes(Code(key=x, value=x.t(), length=10)) == 320
    assert nbytes({"a": [x, ones(2)], "b": (None, ones(3).double())}) == 320 + 8 + 24


def test_nbytes_of_arrays():
    a = np.zeros((10, 8), dtype=np.int64)
    assert nbytes([a, a[:2], a.T]) == 640


def test_nbytes_of_something_else():
    with pytest.raises(TypeError, match="cannot weigh a set"):
        nbytes([{1, 2}])


TOY = Device("toy", {torch.float32: 100.0}, bandwidth=10.0, source="made up")


def test_roofline_is_the_slower_of_the_two():
    assert TOY.ridge() == 10.0
    assert roofline_seconds(Cost(1000, 50), TOY) == 10.0
    assert binding_roof(Cost(1000, 50), TOY) == "compute"
    assert roofline_seconds(Cost(100, 50), TOY) == 5.0
    assert binding_roof(Cost(100, 50), TOY) == "memory"


def test_cards_know_their_peaks():
    h100 = DEVICES["H100 SXM"]
    assert h100.ridge(torch.bfloat16) == pytest.approx(295.2, abs=0.1)
    with pytest.raises(KeyError, match=r"T4 has no peak for torch\.bfloat16; known"):
        roofline_seconds(Cost(1, 1), DEVICES["T4"], torch.bfloat16)


def test_a_card_is_known_by_the_name_its_driver_gives_it():
    assert data_sheet("Tesla T4") is DEVICES["T4"]
    assert data_sheet("NVIDIA H100 80GB HBM3") is DEVICES["H100 SXM"]
    assert data_sheet("NVIDIA H100 PCIe") is None  # of another bandwidth


def test_measuring_turns_times_into_rates(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def compare(fns, timer, **_):
        assert timer is sum  # the one that was given
        for fn in fns.values():
            fn()
        return {
            "torch.float32": bench.Timing((2.0,), repeats=1),
            "torch.bfloat16": bench.Timing((0.25,), repeats=1),
            "copy": bench.Timing((0.5,), repeats=1),
        }

    monkeypatch.setattr(hardware.bench, "compare", compare)
    device = measure_this_machine(dtypes=(torch.float32, torch.bfloat16), timer=sum)
    assert device.peak() == 2 * 1024**3 / 2.0
    assert device.peak(torch.bfloat16) == 2 * 1024**3 / 0.25
    assert device.bandwidth == 2 * 2**26 / 0.5
    assert device.source == "measured here: 1024 x 1024 product, 64 MiB copy"


def test_a_cost_of_many_ticks_divides_into_one_tick():
    assert Cost(1001, 515) // 10 == Cost(100, 51)
