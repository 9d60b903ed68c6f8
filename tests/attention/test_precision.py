"""Sums over long histories in 16 bits: they do not overflow, and are rounded once."""

import pytest
import torch

from recsys_edu.attention.kernels import candidate_attention, xor_attend
from recsys_edu.attention.pointwise import PointwiseBlock, attend_pointwise
from recsys_edu.attention.precision import autocast_off, in_float32
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.lime import LimeXOR

N = 16_384


def loud(n, dtype=torch.float16):
    """Keys that all weigh alike: a sum of 16,384 of them is past float16's 65,504."""
    return (torch.full((1, 1, t, 4), 3.0, dtype=dtype) for t in (1, n, n))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_sum_of_many_keys_does_not_overflow(autocast):
    q, k, v = loud(N)
    exact = attend_pointwise(*(x.double() for x in (q, k, v)), None, N)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        got = attend_pointwise(q, k, v, None, N)
        wide = attend_pointwise(*in_float32(q, k, v), None, 1)
    assert got.dtype == torch.float16 and exact.max() > 50
    assert (got - exact).abs().max() <= torch.finfo(torch.float16).eps * exact.max()
    assert wide.dtype == torch.float32 and wide.isfinite().all()
    torch.testing.assert_close(wide.double() / N, exact, rtol=1e-4, atol=0)


def test_nor_do_the_references_of_the_kernels():
    q, k, v = loud(N)
    mask, n = torch.ones(1, N, dtype=torch.bool), torch.tensor([N])
    got = candidate_attention(q, k, v, mask, kind="pointwise", n=n, form="reference")
    links, events = xor_attend((q, k[:, :, :1], v[:, :, :1]), (k, k, v), mask)
    for read in (got, links, events):
        assert read.dtype == torch.float16 and read.isfinite().all()
    torch.testing.assert_close(links, got)


@pytest.mark.parametrize("layers", [1, 2])
def test_lime_xor_in_half_reads_a_long_history(layers):
    """With one block what is kept is the bare sum, in float32."""
    torch.manual_seed(0)
    model = LimeXOR(8, r=2, layers=layers).eval().half()
    vectors = torch.ones(1, N, 8, dtype=torch.float16)
    for block in model.blocks:  # every key weighs, and every value adds
        torch.nn.init.constant_(block.key_value.bias, 8.0)
        torch.nn.init.constant_(block.gate_query.bias, 8.0)
    events = Events(vectors=vectors, mask=torch.ones(1, N, dtype=torch.bool))
    code = model.encode_history(events, torch.zeros(1, 1, 8, dtype=torch.float16))
    assert code.links.isfinite().all() and code.links.dtype == torch.float16
    if layers == 1:
        assert code.total.dtype == torch.float32 and code.total.max() > 65_504
        new = Events(vectors=vectors[:, :1], mask=events.mask[:, :1])
        more = model.extend(code, new, torch.zeros(1, 1, 8, dtype=torch.float16))
        assert more.links.isfinite().all() and more.total.max() > code.total.max()


def test_numbers_of_64_bits_stay_what_they_are():
    x = torch.ones(2, dtype=torch.float64)
    assert in_float32(x)[0] is x
    assert in_float32(x.bfloat16())[0].dtype == torch.float32


def test_autocast_is_off_within_and_on_again_behind():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with autocast_off(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    with autocast_off(x):
        assert (x @ x).dtype == torch.float32


def test_what_is_written_in_place_is_nobody_else_s():
    """Neither inputs nor biases change, with gradients or without."""
    block = PointwiseBlock(8, 2, dropout=0.0)
    x = torch.randn(1, 3, 8)
    mask, bias = torch.rand(1, 1, 3, 3) < 0.5, torch.randn(1, 2, 3, 3)
    q = block.gate_queries(x)[1]
    tensors = [q, *block.keys_values(x), bias]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            before = [t.detach().clone() for t in tensors]
            q, k, v, bias = tensors
            attend_pointwise(q, k, v, mask, 3, bias)
            for now, was in zip(tensors, before, strict=True):
                assert torch.equal(now, was)


def test_where_work_is_counted_there_is_no_autocast_to_switch_off():
    q = torch.empty(1, 2, 3, 4, device="meta")
    assert attend_pointwise(q, q, q, None, 1).shape == q.shape
