"""Versions of weights: taken once, and again after every change."""

import pytest
import torch
from torch import nn

from recsys_edu.scoring.versions import Seen, Watch, require_eval, tensors_of


@pytest.fixture
def module():
    """Parameters, a buffer, a part that is None, and one inside another."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
    module.register_module("nothing", None)
    return module.eval()


def test_all_tensors_of_a_module_are_looked_at(module):
    found = {id(tensor) for tensor in tensors_of(module)}
    assert found == {id(t) for t in (*module.parameters(), *module.buffers())}


def test_any_part_in_training_mode_is_named(module):
    require_eval(module)
    module[1].train()
    with pytest.raises(ValueError, match=r"BatchNorm1d is in training.*model.eval\(\)"):
        require_eval(module)


def replaced(module):
    module[0].weight = nn.Parameter(module[0].weight.detach().clone())


@torch.no_grad()
def written(module):
    module[1].running_mean[0] = 0  # what it was: PyTorch counts writes, not changes


def pointed_elsewhere(module):
    module[0].weight.data = module[0].weight.data.clone()


@pytest.mark.parametrize("change", [replaced, written, pointed_elsewhere])
def test_a_change_is_seen_once(module, change):
    taken = []
    watch = Watch(lambda: str(len(taken.append(1) or taken)))
    assert [watch(tensors_of(module)) for _ in range(2)] == ["1", "1"]
    change(module)
    assert [watch(tensors_of(module)) for _ in range(2)] == ["2", "2"]
    watch.forget()
    assert watch(tensors_of(module)) == "3"


def test_a_change_while_the_version_is_taken_is_seen_next_time(module):
    taken = []

    def take():
        taken.append(1)
        if len(taken) == 1:
            written(module)
        return str(len(taken))

    watch = Watch(take)
    assert [watch(tensors_of(module)) for _ in range(3)] == ["1", "2", "2"]


def test_a_look_keeps_no_weights(module):
    seen = Seen.at(tensors_of(module))
    assert not any(storage.expired() for storage in seen.held)
    replaced(module)
    assert sum(storage.expired() for storage in seen.held) == 1
