"""The examples in docstrings: all run, and what a reader meets first has one."""

import doctest
import importlib
import pkgutil

import pytest

import recsys_edu

# Triton's modules cannot be imported where there is no Triton.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(recsys_edu.__path__, "recsys_edu.")
    if not module.name.endswith(("_triton", "__main__"))
)
CENTRAL = [
    "artefact.save_ranker",
    "attention.masks.Mask",
    "batch.Request",
    "batch.user_batches",
    "bench.compare",
    "cost.counting.count",
    "data.features.Features",
    "data.interactions.InteractionLog",
    "data.tables.read",
    "dlrm.DLRM",
    "dlrm.DLRM.request",
    "encoders.base.HistoryEncoder",
    "encoders.lime.LimeMHA",
    "experiments.record.Record",
    "metrics.evaluate",
    "scoring.link_index.LinkIndex",
    "scoring.user_cache.UserCache",
    "training.fit",
]


def examples(name):
    """The module's docstrings that hold an example."""
    module = importlib.import_module(name)
    return [found for found in doctest.DocTestFinder().find(module) if found.examples]


@pytest.mark.parametrize("name", MODULES)
def test_its_examples_run(name):
    runner = doctest.DocTestRunner()
    for example in examples(name):
        said = []
        failed, _ = runner.run(example, out=said.append)
        assert not failed, "".join(said)


@pytest.mark.parametrize("name", CENTRAL)
def test_what_a_reader_meets_first_has_an_example(name):
    documented = {each.name for module in MODULES for each in examples(module)}
    assert f"recsys_edu.{name}" in documented
