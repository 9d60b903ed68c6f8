"""Every form of a mask says what its rule says, and the rule what its name says."""

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from recsys_edu.attention import masks
from recsys_edu.attention.softmax import attend, attend_and_itself

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
        masks.xor(4, 3),
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


def heads_of(generator, *tokens):
    """Queries, keys or values [1, 2, tokens, 3] in float64."""
    return (
        torch.randn(1, 2, t, 3, generator=generator, dtype=torch.float64)
        for t in tokens
    )


@given(keys=st.integers(1, 6), queries=st.integers(1, 3), seed=st.integers(0, 999))
def test_a_masked_key_is_as_if_it_were_not_there(keys, queries, seed):
    """The mask is on the key index, and comes before the softmax."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, own_k, own_v = heads_of(generator, queries, keys, keys, queries, queries)
    mask = torch.rand(queries, keys, generator=generator) < 0.5
    mask[:, 0] = True  # what all may read, as a start token
    read = attend(q, k, v, mask)
    read_too = attend_and_itself(q, k, v, own_k, own_v, mask)
    for i in range(queries):
        kept, one = mask[i], slice(i, i + 1)
        some_k, some_v = k[:, :, kept], v[:, :, kept]
        torch.testing.assert_close(
            read[:, :, one], attend(q[:, :, one], some_k, some_v)
        )
        with_own = [
            torch.cat([shared, own[:, :, one]], dim=2)
            for shared, own in ((some_k, own_k), (some_v, own_v))
        ]
        torch.testing.assert_close(read_too[:, :, one], attend(q[:, :, one], *with_own))


def test_attention_is_its_formula():
    q, k, v = heads_of(torch.Generator().manual_seed(0), 2, 4, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / 3**0.5, dim=-1)
    torch.testing.assert_close(attend(q, k, v), weights @ v)
