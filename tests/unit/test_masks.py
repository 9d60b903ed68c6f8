"""Every form of a mask says what its rule says, and the rule what its name says."""

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from recsys_edu.attention import masks

SIZES = st.integers(0, 6)


@given(n=SIZES, m=SIZES, causal=st.booleans(), reads_itself=st.booleans())
def test_append_reads_what_its_docstring_says(n, m, causal, reads_itself):
    mask = masks.append(n, m, causal=causal, reads_itself=reads_itself)
    dense = mask.dense()
    assert dense.shape == (n + m, n + m) and dense.dtype == torch.bool
    for q in range(n + m):
        for k in range(n + m):
            if q < n:  # history
                expected = k < n and (k <= q or not causal)
            else:  # a candidate
                expected = k < n or (k == q and reads_itself)
            assert dense[q, k] == expected, (q, k)
    assert mask.pairs == dense.sum()


def test_the_count_of_cross_attention_is_n_squared_plus_n_m():
    assert masks.append(5, 3, causal=False, reads_itself=False).pairs == 5 * 5 + 5 * 3


@given(n=SIZES, m=st.integers(0, 1))
def test_bidirectional_reads_everything(n, m):
    assert masks.bidirectional(n, m).dense().all()


def test_bidirectional_refuses_candidates_that_would_read_each_other():
    with pytest.raises(ValueError, match="2 candidates would read each other"):
        masks.bidirectional(4, 2)


@pytest.mark.parametrize(
    "mask",
    [
        masks.append(4, 3, causal=True, reads_itself=True),
        masks.append(4, 3, causal=False, reads_itself=False),
        masks.bidirectional(4, 1),
    ],
    ids=lambda mask: mask.name,
)
def test_flex_attention_builds_the_same_mask_from_mask_mod(mask):
    flex = create_mask(mask.mask_mod, 1, 1, mask.size, mask.size, device="cpu")
    assert torch.equal(flex[0, 0], mask.dense())


def test_a_mask_draws_itself():
    mask = masks.append(4, 2, causal=True, reads_itself=False)
    _, axes = plt.subplots()
    mask.draw(axes)
    [image] = axes.get_images()
    assert torch.equal(torch.tensor(image.get_array().data).bool(), mask.dense())
    assert axes.get_title(loc="left") == mask.name or axes.get_title() == mask.name
    assert [line.get_ydata()[0] for line in axes.lines[:1]] == [3.5]
    plt.close("all")
