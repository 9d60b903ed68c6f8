"""The link index: the direct scores from looked-up weights, and never stale ones."""

import copy
import gc
import sys
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.cost import count, nbytes
from recsys_edu.data import Features
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.lime import LimeMHA
from recsys_edu.scoring import link_index
from recsys_edu.scoring.link_index import LinkIndex, item_version
from recsys_edu.scoring.strategies import links, naive
from recsys_edu.scoring.user_cache import UserCache

LIME = ["LIME-MHA", "LIME-XOR, one block", "LIME-XOR, two blocks", "LIME-XOR"]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
SHAPES = st.fixed_dictionaries(
    dict(b=st.integers(1, 3), n=st.integers(0, 6), m=st.integers(0, 5)),
)
few = settings(max_examples=8, deadline=None)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def weights_of(model, items):
    with torch.no_grad():
        return model.encoder.encode_items(model.embeddings.items(items).sum(-2))


# Scores.


@pytest.mark.parametrize("name", LIME)
@few
@given(
    size=st.integers(0, 3),
    shape=SHAPES,
    seed=st.integers(0, 999),
    micro_batch=st.integers(1, 6),
)
def test_looked_up_scores_are_the_naive_ones(
    ranker, draw_request, assert_same, name, size, shape, seed, micro_batch
):
    request = draw_request(seed, **shape)
    assert_same(
        lambda model: links(
            model, request, LinkIndex.build(model), micro_batch=micro_batch
        ),
        lambda model: naive(model, request),
        ranker(name, size),
    )


@pytest.mark.parametrize("name", LIME)
@few
@given(seed=st.integers(0, 999), micro_batch=st.integers(1, 6))
def test_unknown_and_hidden_candidates_are_scored_as_naively(
    ranker, draw_request, assert_same, name, seed, micro_batch
):
    """Index -1 has link weights; what is not shown is looked up nowhere."""
    request = draw_request(seed, b=3, n=4, m=5)
    rng = np.random.default_rng(seed)
    unknown, hidden = (torch.from_numpy(rng.random((3, 5)) < 0.3) for _ in range(2))
    candidates = request.candidates.masked_fill(unknown, -1)
    shown = replace(request, candidates=candidates, shown=~hidden)
    nonsense = replace(shown, candidates=candidates.masked_fill(hidden, 10**9))

    def looked_up(model):
        return links(model, nonsense, LinkIndex.build(model), micro_batch=micro_batch)

    scores = looked_up(ranker(name).float32)
    assert torch.equal(scores.isneginf(), hidden) and not scores.isnan().any()
    assert_same(
        lambda model: looked_up(model).masked_fill(hidden, 0),
        lambda model: naive(model, shown).masked_fill(hidden, 0),
        ranker(name),
    )


def test_a_cache_of_users_serves_beside_the_index(ranker, draw_request, assert_same):
    request = draw_request(0, b=1, n=5, m=4)

    def twice(model):
        cache = UserCache(model, max_bytes=10**6)
        index, encode = LinkIndex.build(model), cache.encode_request
        first, second = (
            links(model, request, index, micro_batch=3, encode=encode) for _ in range(2)
        )
        assert cache.outcomes == {"new user": 1, "hit": 1}
        return torch.cat([first, second])

    assert_same(
        twice, lambda model: naive(model, request).repeat(2, 1), ranker("LIME-MHA")
    )


@every_type
def test_scores_err_by_what_the_rounded_weights_err(ranker, draw_request, dtype):
    """Exactly the model's scores of the weights that the table holds."""
    model, request = ranker("LIME-MHA").float32, draw_request(2, b=2, n=6, m=5)
    index = LinkIndex.build(model, dtype=dtype)
    items = model.encode_items(request.candidates)
    stored = replace(items, code=index[request.candidates].float())
    expected = model.fuse(stored, model.encode_request(request))
    got = links(model, request, index, micro_batch=5)
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_a_candidate_s_link_weights_are_not_computed(ranker, draw_request):
    model, request = ranker("LIME-MHA").float32, draw_request(0, b=1, n=5, m=4)
    index, calls = LinkIndex.build(model), []
    encode = model.encoder.encode_items
    try:
        model.encoder.encode_items = lambda items: calls.append(items) or encode(items)
        links(model, request, index, micro_batch=2)
        assert not calls
        naive(model, request)
        assert calls
    finally:
        del model.encoder.encode_items
    direct = count(model.encode_items, request.candidates).flops
    looked_up = count(
        model.encode_items, request.candidates, items := index[request.candidates]
    ).flops
    d, r = 8, items.shape[-1]
    # W_q T for each of 4 candidates and W_k L once, then their products.
    assert direct - looked_up == 2 * (4 * d * d + r * d * d + 4 * r * d)


# The table.


@every_type
def test_a_weight_is_rounded_once(ranker, dtype):
    model = ranker("LIME-MHA", 2).float32
    index, exact = (
        LinkIndex.build(model, dtype=dtype),
        weights_of(model, torch.arange(30)),
    )
    got = index[torch.arange(30)]
    assert got.dtype == (torch.float32 if dtype == torch.int8 else dtype)
    error = (got.float() - exact).abs()
    if dtype == torch.int8:  # half a step, and the step and product themselves rounded
        step = exact.abs().amax(-1, keepdim=True) / 127
        assert (error <= step * (0.5 + 127 * 2**-22)).all()
        assert error.max() > 0
    else:
        assert (error <= exact.abs() * torch.finfo(dtype).eps / 2 + 2**-25).all()


@pytest.mark.parametrize(
    "dtype, size", [(torch.float32, 128), (torch.float16, 64), (torch.int8, 36)]
)
def test_the_bytes_of_an_item_are_known(world, tmp_path, dtype, size):
    """At r = 32, in memory and on disk, where a header comes on top."""
    log = world.log
    model = DLRM(
        Embeddings(log.users, log.items, log.events, 8), LimeMHA(8, r=32)
    ).eval()
    index = LinkIndex.build(model, dtype=dtype)
    assert len(index) == 30
    rows = 30 + 2  # the unknown item's, and one for what is past the end
    assert nbytes([index.weights, index.scale]) == size * rows
    index.save(tmp_path / "index")
    assert 0 < (tmp_path / "index").stat().st_size - size * rows < 512


def test_a_row_of_zeros_survives_int8(ranker):
    model = copy.deepcopy(ranker("LIME-MHA").float32)
    model.encoder.phi = "identity"
    torch.nn.init.zeros_(model.encoder.item_query.weight)
    index = LinkIndex.build(model, dtype=torch.int8)
    assert torch.equal(index[torch.arange(30)], torch.zeros(30, 3))


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_batches_change_no_row(ranker, capsys, batch_size):
    """To a rounding: a matrix product may add in another order."""
    model = ranker("LIME-XOR").float32
    index = LinkIndex.build(model, batch_size=batch_size)
    torch.testing.assert_close(
        index[torch.arange(30)], weights_of(model, torch.arange(30))
    )
    [line] = capsys.readouterr().err.splitlines()
    assert "30.0/30.0 " in line and " items/s" in line


def test_no_graph_is_kept(ranker):
    assert not LinkIndex.build(ranker("LIME-MHA").float32).weights.requires_grad


# Files.


@every_type
def test_a_saved_index_opens_as_it_was(ranker, draw_request, tmp_path, dtype):
    model, request = ranker("LIME-MHA").float32, draw_request(2, b=2, n=6, m=5)
    index = LinkIndex.build(model, dtype=dtype)
    index.save(tmp_path / "index.safetensors")
    opened = LinkIndex.open(tmp_path / "index.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["index.safetensors"]
    assert len(opened) == 30 and opened.version == index.version
    assert torch.equal(opened[torch.arange(30)], index[torch.arange(30)])
    assert torch.equal(
        links(model, request, opened, micro_batch=2),
        links(model, request, index, micro_batch=2),
    )


def test_opening_reads_no_row(ranker, tmp_path):
    """A row that is written to the file after opening is the row that is looked up."""
    path = tmp_path / "index"
    LinkIndex.build(ranker("LIME-MHA").float32).save(path)
    opened = LinkIndex.open(path)
    with path.open("r+b") as file:
        file.seek(-2 * 3 * 4, 2)  # the last item's row of r = 3 float32
        file.write(np.array([7, 8, 9], np.float32).tobytes())
    assert opened[torch.tensor(29)].tolist() == [7, 8, 9]


@every_type
def test_changes_never_reach_an_opened_file(ranker, tmp_path, dtype):
    model, path = ranker("LIME-MHA").float32, tmp_path / "index"
    LinkIndex.build(model, dtype=dtype).save(path)
    before = path.read_bytes()
    opened = LinkIndex.open(path)
    opened.remove(torch.tensor([3, 29]))
    opened.add(model, torch.tensor([3]))
    assert path.read_bytes() == before
    opened.save(path)  # over the file it is mapped from
    again = LinkIndex.open(path)
    assert torch.equal(again[torch.arange(29)], opened[torch.arange(29)])
    with pytest.raises(KeyError, match=r"items \[29\] are not"):
        again[torch.tensor([29])]


def test_a_save_that_fails_leaves_the_old_file(ranker, tmp_path, monkeypatch):
    index, path = LinkIndex.build(ranker("LIME-MHA").float32), tmp_path / "index"
    index.save(path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("recsys_edu.scoring.link_index.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        index.save(path)
    assert path.read_bytes() == before


# What is in the index.


@every_type
def test_unknown_items_are_named(ranker, draw_request, dtype):
    model = ranker("LIME-MHA").float32
    index = LinkIndex.build(model, torch.arange(0, 20, 2), dtype=dtype)
    assert len(index) == 19
    torch.testing.assert_close(
        index[torch.tensor([[0, 4], [18, 2]])].float(),
        weights_of(model, torch.tensor([[0, 4], [18, 2]])),
        atol=0.01, rtol=0.01,
    )  # fmt: skip
    for item, named in [
        ([1, 0, 17, 1], r"\[1, 17\] are"),
        ([0, 25, -2], r"\[-2, 25\] are"),
        (list(range(20)), r"\[1, 3, 5, 7, 9\] and 5 more are"),
        (list(range(1, 19, 2)), r"\[1, 3, 5, 7, 9\] and 4 more are"),
    ]:
        with pytest.raises(KeyError, match=rf"items {named} not in the link index"):
            index[torch.tensor(item)]
    request = replace(draw_request(0, 1, 3, 2), candidates=torch.tensor([[2, 3]]))
    with pytest.raises(KeyError, match=r"items \[3\] are not"):
        links(model, request, index, micro_batch=9)


@every_type
def test_items_come_and_go_without_a_rebuild(ranker, dtype):
    """Rows of other items stay, to the bit; a removed item may come again."""
    model, some = ranker("LIME-MHA").float32, torch.tensor([3, 8])
    index = LinkIndex.build(model, torch.arange(20), dtype=dtype)
    others = torch.tensor([k for k in range(20) if k not in (3, 8)])
    before, gone = index[others], index[some]
    index.remove(some)
    with pytest.raises(KeyError, match=r"items \[3, 8\]"):
        index[torch.arange(20)]
    with pytest.raises(KeyError, match=r"items \[3\]"):
        index.remove(torch.tensor([3]))
    assert torch.equal(index[others], before)
    index.add(model, torch.tensor([27, 8, 3]))
    assert torch.equal(index[others], before)
    torch.testing.assert_close(index[some], gone)
    torch.testing.assert_close(
        index[torch.tensor(27)].float(), weights_of(model, torch.tensor(27)),
        atol=0.01, rtol=0.01,
    )  # fmt: skip
    with pytest.raises(KeyError, match=r"items \[26\]"):
        index[torch.tensor([26, 27])]
    index.require(model)


@pytest.mark.parametrize("items", [[30], [-2], [-1], [4, 31]])
def test_an_item_the_model_cannot_embed_is_refused(ranker, items):
    index = LinkIndex.build(ranker("LIME-MHA").float32, torch.arange(5))
    with pytest.raises(KeyError, match=r"the model embeds items 0\.\.29"):
        index.add(ranker("LIME-MHA").float32, torch.tensor(items))
    assert len(index) == 5


def test_an_index_may_be_empty(ranker):
    model = ranker("LIME-MHA").float32
    index = LinkIndex.build(model, torch.arange(0))
    assert len(index) == 0 and index[torch.arange(0)].shape == (0, 3)
    with pytest.raises(KeyError, match=r"items \[0\]"):
        index[torch.tensor([0])]
    index.add(model, torch.tensor([2]))
    assert len(index) == 3


def of_first(log, n, encoder):
    """A ranker that knows n items of a log, with the weights of any other n."""
    items = Features(
        dense=log.items.dense[:n],
        dense_names=log.items.dense_names,
        sparse={name: value[:n] for name, value in log.items.sparse.items()},
        cardinality=log.items.cardinality,
    )
    torch.manual_seed(0)
    return DLRM(Embeddings(log.users, items, log.events, 8), encoder(8, r=3)).eval()


def test_a_catalogue_that_grew_keeps_its_index(world):
    """Tomorrow's model: the same weights, made from features of ten more items."""
    today = of_first(world.log, 20, LimeMHA)
    tomorrow = of_first(world.log, 30, LimeMHA)
    tomorrow.load_state_dict(today.state_dict())
    index = LinkIndex.build(today)
    before = index[torch.arange(20)]
    index.require(tomorrow)
    with pytest.raises(KeyError, match="20"):
        index[torch.tensor([20])]
    index.add(tomorrow, torch.arange(20, 30))
    assert torch.equal(index[torch.arange(20)], before)
    torch.testing.assert_close(
        index[torch.arange(30)], weights_of(tomorrow, torch.arange(30))
    )
    index.require(tomorrow)
    with pytest.raises(ValueError, match="stale"):
        index.require(today)  # it does not know what the rows were made from


@every_type
def test_one_item_after_another_is_copied_and_hashed_once(make_model, hashed, dtype):
    """Amortized: the table doubles, and only new rows' features are read."""
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model, torch.arange(10), dtype=dtype)
    hashed.clear()
    places = set()
    for item in range(10, 30):
        index.add(model, torch.tensor([item]))
        places.add(index.weights.data_ptr())
    assert len(places) == 2  # room for 22 items, then for 46
    assert hashed == [(item, item + 1) for item in range(10, 30)]
    whole = LinkIndex.build(model, dtype=dtype)
    assert index.version == whole.version == item_version(model, 30)
    got, expected = index[torch.arange(-1, 30)], whole[torch.arange(-1, 30)]
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=0)


def test_a_new_item_enters_a_live_model_and_its_index(make_model, hashed):
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model)
    hashed.clear()
    new = model.embeddings.items.values.add([77, 78], sparse={"topic": [1, 2]})
    index.require(model)  # rows behind the index's are nothing to it
    assert not hashed
    with pytest.raises(KeyError, match=r"items \[30, 31\] are not"):
        index[new]
    index.add(model, new)
    torch.testing.assert_close(index[new], weights_of(model, new))
    assert hashed == [(30, 32)]
    index.require(model)


def test_features_of_items_past_the_index_make_no_row_stale(make_model):
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model, torch.arange(5))
    model.embeddings.items.values.replace([7], sparse={"topic": [0]})
    index.require(model)
    model.embeddings.items.values.replace([4], sparse={"topic": [0]})
    with pytest.raises(ValueError, match="stale"):
        index.require(model)


@every_type
def test_an_index_moves_to_another_device(make_model, dtype):
    """On a device nothing waits, so what is not there is NaN instead of an error."""
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model, torch.arange(9), dtype=dtype)
    index.add(model, torch.tensor([11]))  # and has room for more
    assert index.to("cpu") is index
    device = "cuda" if torch.cuda.is_available() else "meta"
    moved = index.to(device)
    assert moved.device.type == device and len(moved) == 12
    got = moved[torch.tensor([[3, 10], [-1, 99]], device=device)]
    assert got.shape == (2, 2, 3) and got.device.type == device
    table = index._table.trimmed("cpu")  # what moves
    rows = table.of(torch.tensor([3, 11, -1, 9, 10, 12, 13, 99, -2]))
    missing = rows.isnan().any(-1).tolist()
    assert missing == 3 * [False] + 6 * [True]
    assert torch.equal(rows[:3], index[torch.tensor([3, 11, -1])])


@every_type
def test_rows_of_the_index_are_read_as_its_weights_are(ranker, draw_request, dtype):
    """What a GPU is given: the table, and who reads which row of it."""
    model, request = ranker("LIME-MHA").float32, draw_request(2, b=2, n=6, m=5)
    index = LinkIndex.build(model, torch.arange(29), dtype=dtype)
    known = model.encode_request(request)
    items = request.candidates.clamp(max=28)
    items[0, 0] = -1

    def scores(code):
        return model.fuse(model.encode_items(items, code), known)

    looked_up = scores(index[items].float())
    torch.testing.assert_close(scores(index.rows(items)), looked_up)
    items[1, 2:4] = torch.tensor([29, -1])  # one that is not there; embedded it can be
    missing = scores(index.rows(items)).isnan()
    assert missing.nonzero().tolist() == [[1, 2]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_type
def test_on_a_gpu_scores_come_from_an_index_on_the_gpu(make_model, draw_request, dtype):
    model, request = make_model("LIME-MHA"), draw_request(2, b=2, n=6, m=5)
    index = LinkIndex.build(model, dtype=dtype)
    expected = links(model, request, index, micro_batch=2)
    model.to("cuda")
    scores = links(model, request.to("cuda"), index.to("cuda"), micro_batch=2)
    torch.testing.assert_close(scores.cpu(), expected, atol=1e-3, rtol=1e-3)


@every_type
def test_readers_see_whole_rows_while_others_add_and_remove(make_model, dtype):
    """Eight threads, told to take turns at every chance."""
    model = make_model("LIME-MHA")
    right = LinkIndex.build(model, dtype=dtype)[torch.arange(30)]
    index = LinkIndex.build(model, torch.arange(5), dtype=dtype)
    wrong, errors, stop = [], [], threading.Event()

    def read(seed):
        rng = torch.Generator().manual_seed(seed)
        try:
            while not stop.is_set():
                items = torch.randint(30, (6,), generator=rng)
                try:
                    got = index[items]
                except KeyError:
                    continue
                index.require(model)
                # Rows are made in batches of any size, which rounds otherwise.
                if not torch.allclose(got.float(), right[items].float(), atol=1e-2):
                    wrong.append(items)
        except Exception as error:
            errors.append(error)

    def write(first):
        try:
            for item in range(first, 30, 2):
                index.add(model, torch.tensor([item]))
                for _ in range(3):
                    index.remove(torch.tensor([first]))
                    index.add(model, torch.tensor([first]))
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read, args=(k,)) for k in range(6)]
    writers = [threading.Thread(target=write, args=(k,)) for k in (3, 4)]
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        for thread in readers:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors and not wrong
    torch.testing.assert_close(
        index[torch.arange(30)].float(), right.float(), atol=1e-2, rtol=0
    )


# Staleness.


def optimizer_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(weight.square().sum() for weight in model.parameters()).backward()
    optimizer.step()


@torch.no_grad()
def one_weight(model, name):
    dict(model.named_parameters())[name].view(-1)[-1] += 1


def an_item_s_feature(model):
    model.embeddings.items.values.replace([7], sparse={"topic": [0]})


def another_phi(model):
    model.encoder.phi = "silu"


STALE = {
    "optimizer step": optimizer_step,
    "loaded": lambda model: model.load_state_dict(
        {key: value * 0.5 for key, value in model.state_dict().items()}
    ),
    "links": lambda model: one_weight(model, "encoder.links"),
    "item query": lambda model: one_weight(model, "encoder.item_query.weight"),
    "item table": lambda model: one_weight(
        model, "embeddings.items.table_topic.weight"
    ),
    "feature": an_item_s_feature,
    "phi": another_phi,
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("change", STALE)
def test_a_stale_index_is_refused(make_model, draw_request, tmp_path, change):
    """By the one in memory, which has served this model before, and by the file."""
    model, request = make_model("LIME-MHA"), draw_request(0, b=1, n=3, m=2)
    index = LinkIndex.build(model)
    index.save(tmp_path / "index")
    with torch.no_grad():
        links(model, request, index, micro_batch=2)
    STALE[change](model)
    for stale in (index, LinkIndex.open(tmp_path / "index")):
        with pytest.raises(ValueError, match=r"stale.*Build it again"):
            links(model, request, stale, micro_batch=2)
        with pytest.raises(ValueError, match="stale"):
            stale.add(model, torch.tensor([1]))
    links(model, request, LinkIndex.build(model), micro_batch=2)


@pytest.mark.parametrize(
    "name",
    ["top.cross.weight", "top.item.weight", "embeddings.users.table_segment.weight"],
)
def test_what_no_row_reads_makes_no_row_stale(make_model, draw_request, name):
    """Users, the top MLP; the scores follow their change."""
    model, request = make_model("LIME-MHA"), draw_request(0, b=1, n=3, m=2)
    index = LinkIndex.build(model)
    before = links(model, request, index, micro_batch=2)
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(1.5)
    after = links(model, request, index, micro_batch=2)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, naive(model, request))


@pytest.fixture
def hashed(monkeypatch):
    """What was hashed: "weights", or the (first, end) items whose features were."""
    taken = []

    def weights(model):
        taken.append("weights")
        return item_weights(model)

    def features(digest, model, first, end):
        taken.append((first, end))
        read_features(digest, model, first, end)

    item_weights, read_features = link_index._item_weights, link_index._read_features
    monkeypatch.setattr(link_index, "_item_weights", weights)
    monkeypatch.setattr(link_index, "_read_features", features)
    return taken


def test_the_hash_is_taken_again_only_after_a_change(make_model, hashed):
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model)
    hashed.clear()
    for _ in range(3):
        index.require(model)
    assert not hashed
    model.load_state_dict(copy.deepcopy(model.state_dict()))  # the same, written anew
    index.require(model)
    index.require(model)
    assert hashed == [(0, 30), "weights"]
    other = copy.deepcopy(model)  # another model with the same weights
    for _ in range(3):
        index.require(other)
        index.require(model)
    assert hashed.count("weights") == 2


def test_a_given_phi_is_seen_to_change(make_model):
    """No weight moves: PyTorch's counters say nothing about it."""
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model)
    index.require(model)
    model.encoder.phi = "identity"
    with pytest.raises(ValueError, match="stale"):
        index.require(model)


def test_an_address_that_is_used_again_is_another_tensor(make_model):
    """`.data =` moves no counter, and memory that was freed is given out again."""
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model)
    weight = model.encoder.item_query.weight
    place = weight.data_ptr()
    for _ in range(1000):  # until the allocator gives the first address again
        weight.data = torch.rand_like(weight)
        if weight.data_ptr() == place:
            break
    with pytest.raises(ValueError, match="stale"):
        index.require(model)


def test_no_model_is_kept_alive(make_model):
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model)
    index.require(model)
    gone = weakref.ref(model.embeddings.items.table_topic.weight)
    del model
    gc.collect()
    assert gone() is None
    index.require(make_model("LIME-MHA"))  # of the same seed


def test_a_model_made_in_inference_mode_is_indexed(make_model, draw_request):
    """Its weights have no counter, so that they are hashed at every request."""
    request = draw_request(0, b=1, n=3, m=4)
    with torch.inference_mode():
        model = make_model("LIME-MHA")
        index = LinkIndex.build(model, torch.arange(9))
    index.add(model, torch.arange(9, 30))  # outside of it
    with torch.no_grad():
        scores = links(model, request, index, micro_batch=2)
        torch.testing.assert_close(scores, naive(model, request))
    with torch.inference_mode():
        model.encoder.links.mul_(2)
    with pytest.raises(ValueError, match="stale"):
        links(model, request, index, micro_batch=2)


def test_autocast_makes_no_other_index(ranker):
    model = ranker("LIME-MHA").float32
    index = LinkIndex.build(model)
    with torch.autocast("cpu", torch.bfloat16):
        again = LinkIndex.build(model)
    assert torch.equal(again.weights, index.weights)


def test_weights_that_change_while_rows_are_made_spoil_none(make_model, monkeypatch):
    """The rows of the first batch are written, those of the second refused."""
    model, made = make_model("LIME-MHA"), []
    index = LinkIndex.build(model, torch.arange(10))
    before = index[torch.arange(10)]
    compute = link_index._weights_of

    def weights_of(model, items):
        weights = compute(model, items)
        if made:
            one_weight(model, "encoder.links")
        made.append(items)
        return weights

    monkeypatch.setattr(link_index, "_weights_of", weights_of)
    with pytest.raises(ValueError, match="stale"):
        index.add(model, torch.arange(10, 20), batch_size=5)
    assert len(made) == 2 and len(index) == 10
    assert torch.equal(index[torch.arange(10)], before)


def test_an_add_that_failed_left_nothing(make_model, monkeypatch):
    """Rows that were written behind the end are none when the end has moved."""
    model = make_model("LIME-MHA")
    index, compute = LinkIndex.build(model, torch.arange(10)), link_index._weights_of
    index.add(model, torch.tensor([10]))  # there is room now

    def fails_at_the_second_batch(model, items):
        if items[0] > 11:
            raise KeyboardInterrupt
        return compute(model, items)

    monkeypatch.setattr(link_index, "_weights_of", fails_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        index.add(model, torch.tensor([11, 12]), batch_size=1)
    monkeypatch.undo()
    assert len(index) == 11
    index.add(model, torch.tensor([13]))
    with pytest.raises(KeyError, match=r"items \[11, 12\] are not"):
        index[torch.arange(14)]


@pytest.mark.parametrize("use", [LinkIndex.build, "add", "links"])
def test_a_model_in_training_is_refused(make_model, draw_request, use):
    model = make_model("LIME-MHA")
    index = LinkIndex.build(model)
    # Of the ranker's other parts the index knows nothing, the strategy does.
    (model.top if use == "links" else model.encoder).train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        if use == "add":
            index.add(model, torch.tensor([3]))
        elif use == "links":
            links(model, draw_request(0, 1, 3, 2), index, micro_batch=2)
        else:
            use(model)


@pytest.mark.parametrize("name", ["DIN", "append-cross", "naive"])
def test_a_ranker_without_links_has_no_index(ranker, draw_request, name):
    with pytest.raises(TypeError, match="has no links to index"):
        LinkIndex.build(ranker(name).float32)
    index = LinkIndex.build(ranker("LIME-MHA").float32)
    with pytest.raises(TypeError, match="has no links to index"):
        links(ranker(name).float32, draw_request(0, 1, 3, 2), index, micro_batch=2)


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_a_micro_batch_of_no_candidate_is_refused(ranker, draw_request, micro_batch):
    model = ranker("LIME-MHA").float32
    with pytest.raises(ValueError, match=f"micro_batch is {micro_batch}; it must be 1"):
        links(
            model,
            draw_request(0, 1, 3, 2),
            LinkIndex.build(model),
            micro_batch=micro_batch,
        )


def test_a_copy_of_an_index_is_another_index(ranker):
    model = ranker("LIME-MHA").float32
    index = LinkIndex.build(model)
    other, before = copy.deepcopy(index), index.weights.clone()
    other.require(model)
    other.weights[:] = 0
    other.remove(torch.tensor([3]))
    assert torch.equal(index.weights, before)
