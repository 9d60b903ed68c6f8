"""The wheel: what it holds, what it asks for, and that it needs nothing else."""

import json
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MODULES = [path.relative_to(ROOT) for path in (ROOT / "recsys_edu").rglob("*.py")]
RECORDS = [
    Path("recsys_edu/experiments/recorded") / path.name
    for path in ROOT.glob("figures/recorded/*.json")
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, ROOT], check=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def about(wheel: Path) -> metadata.Distribution:
    """The distribution inside the wheel."""
    [distribution] = metadata.distributions(path=[str(wheel)])
    return distribution


@pytest.fixture(scope="module")
def python(
    wheel: Path, about: metadata.Distribution, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An interpreter that sees the installed wheel and what it requires, no more.

    Nothing is downloaded: the requirements are links to this environment's copies.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    [site] = folder.glob("lib/python*/site-packages")
    for distribution in required(about):
        tops = {file.parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            if not (site / top).exists():  # namespaces are shared between distributions
                (site / top).symlink_to(distribution.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", wheel], check=True)
    return python


def required(about: metadata.Distribution) -> list[metadata.Distribution]:
    """Everything that ``about`` requires without extras, directly or through others."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(text, "") for text in about.requires or ()]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        known = name in found
        if not known:
            found[name] = metadata.distribution(name)
        for wanted in requirement.extras if known else {"", *requirement.extras}:
            waiting += [(text, wanted) for text in found[name].requires or ()]
    return list(found.values())


def run(python: Path, script: str) -> str:
    """What ``script`` prints when ``python`` runs it away from this checkout."""
    command = [python, "-I", "-c", script]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=python.parent
    )
    return done.stdout


def test_the_wheel_holds_the_packages_the_records_and_nothing_else(wheel: Path) -> None:
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    info = {name for name in names if name.parts[0].endswith(".dist-info")}
    assert names - info == {*MODULES, *RECORDS}
    assert "LICENSE" in {name.name for name in info}


def test_it_pins_nothing(about: metadata.Distribution) -> None:
    requirements = [Requirement(text) for text in about.requires or ()]
    plain = [each for each in requirements if each.marker is None]
    operators = {spec.operator for each in plain for spec in each.specifier}
    assert operators == {">="}
    [torch] = [each for each in plain if each.name == "torch"]
    assert torch.specifier.contains("2.6.0")
    assert about.metadata["Requires-Python"] == ">=3.11"


def test_versions_agree(about: metadata.Distribution) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert about.version == str(citation["version"])


def test_what_it_requires_is_consistent(python: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python]
    result = subprocess.run([*pip, "check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_package_imports_nothing_else(python: Path) -> None:
    script = (
        "import sys; before = set(sys.modules); import recsys_edu; "
        "print(*(set(sys.modules) - before))"
    )
    assert run(python, script).split() == ["recsys_edu"]


def test_models_are_imported_without_a_compiler_and_without_tables(
    python: Path,
) -> None:
    """Each takes a second or more, and most who import a model need neither."""
    script = (
        "import sys, torch; import recsys_edu.artefact, recsys_edu.scoring.strategies; "
        "print(*{'torch._dynamo', 'triton', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    assert run(python, script).split() == []


def test_every_module_imports_alone_and_offline(python: Path) -> None:
    """Each in a process of its own, so that none leans on what another imported.

    But for Triton kernels: the package does not require Triton, and imports them once
    it has found it.
    """
    modules = [path for path in MODULES if not path.stem.endswith("_triton")]
    assert len(modules) < len(MODULES)
    names = [".".join(path.with_suffix("").parts) for path in modules]
    script = f"""
import importlib, json, os, sys, traceback
# Once: every child inherits what the package takes from others.
import IPython.display, matplotlib.pyplot, pandas, pooch, pyarrow.csv, safetensors.torch
import scipy.stats, sklearn.metrics, torch, torch.profiler, torch.optim.swa_utils
import torch._dynamo, torch._inductor

def offline(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise RuntimeError(f"the network was used: {{event}} {{args}}")

sys.addaudithook(offline)
failed = []
for name in {names!r}:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name.removesuffix(".__init__"))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(json.dumps(failed))
"""
    assert json.loads(run(python, script)) == []
