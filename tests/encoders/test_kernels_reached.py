"""The kernels that encoders reach on a GPU, here in Triton's interpreter."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from recsys_edu.attention.kernels import candidates, fuse_links
from recsys_edu.encoders import lime
from recsys_edu.encoders.lime import LinkRows


@pytest.fixture
def launched(monkeypatch):
    """Makes "auto" the Triton kernels, and counts how often they ran."""
    pytest.importorskip("triton")
    from recsys_edu.attention.kernels import candidates_triton, links_triton

    calls = []
    for module in (candidates_triton, links_triton):

        def noting(*args, real=module.launch, name=module.__name__, **options):
            calls.append(name.rpartition(".")[2])
            return real(*args, **options)

        monkeypatch.setattr(module, "launch", noting)
    kernel = partial(candidates.candidate_attention, form="triton")
    monkeypatch.setattr(candidates, "candidate_attention", kernel)
    monkeypatch.setattr(lime, "fuse_links", partial(fuse_links, form="triton"))
    return calls


@torch.no_grad()
def test_hstu_s_candidates_reach_the_kernel(
    ranker, draw_request, assert_same, monkeypatch, launched
):
    """Where they share their time and history; those that do not are left alone."""
    both, request = ranker("HSTU"), draw_request(1, b=2, n=6, m=3)
    expected = both.float32(replace(request))
    assert launched == 2 * ["candidates_triton"]  # a layer each
    monkeypatch.undo()
    torch.testing.assert_close(both.float32(request), expected)


@pytest.mark.parametrize("own", ["time", "prefix"])
@torch.no_grad()
def test_candidates_with_a_row_of_their_own_do_not(ranker, draw_request, launched, own):
    request = draw_request(1, b=2, n=6, m=3)
    if own == "time":
        request = replace(request, timestamp=request.timestamp + torch.arange(3))
    else:
        request = replace(request, visible=torch.tensor([[0, 1, 1], [2, 0, 1]]))
    ranker("HSTU").float32(request)
    assert not launched


@pytest.mark.parametrize("table", [torch.float32, torch.float16, torch.int8])
@torch.no_grad()
def test_rows_of_an_index_are_looked_up_and_summed_at_once(
    ranker, draw_request, launched, table
):
    model, request = ranker("LIME-MHA").float32, draw_request(1, b=2, n=6, m=4)
    code = model.encode_request(request).code
    weights, scale = model.encode_items(torch.arange(30)).code, None
    if table == torch.int8:
        scale = weights.abs().amax(-1) / 127
        weights = (weights / scale[:, None]).round()
    rows = LinkRows(weights.to(table), request.candidates, scale)
    looked_up = rows.weights[rows.item].float()
    if scale is not None:
        looked_up = looked_up * scale[rows.item].unsqueeze(-1)
    got = model.encoder.fuse(rows, code)
    assert launched == ["links_triton"]
    torch.testing.assert_close(got, model.encoder.fuse(looked_up, code))


@torch.no_grad()
def test_rows_of_an_index_are_a_code_as_weights_are(ranker, draw_request):
    """They go into a ranker, to a device, and are cut into micro-batches."""
    model, request = ranker("LIME-XOR").float32, draw_request(1, b=2, n=6, m=4)
    table = model.encode_items(torch.arange(30)).code
    rows = LinkRows(table, request.candidates)
    known = model.encode_request(request)
    got = model.fuse(model.encode_items(request.candidates, rows), known)
    torch.testing.assert_close(got, model(request))
    assert rows[:, :2].item.shape == (2, 2) and rows[:, :2].weights is table
    assert rows.to("meta").weights.device.type == "meta"
