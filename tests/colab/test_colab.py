"""Chapters as Colab runs them.

A session starts with what Colab ships and an empty folder that holds one notebook; the
package comes from a git repository, and nothing that Colab ships may be replaced. The
runtime is installed once, under .cache/; each session is a thin environment on top of
it, so that whatever a chapter installs lies apart and can be listed.

`make test` runs one chapter with the data that other chapters left in the reader's
cache. `make colab` runs all of them, with an empty cache (RECSYS_EDU_CACHE).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
CHAPTERS += sorted((ROOT / "book").glob("*.ipynb"))  # appendices
EXECUTE = """
import nbclient, nbformat
notebook = nbformat.read("chapter.ipynb", as_version=4)
nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
"""


def site_packages(environment: Path) -> Path:
    """The folder that ``environment`` installs into."""
    [folder] = environment.glob("lib/python*/site-packages")
    return folder


@pytest.fixture(scope="session")
def runtime() -> Path:
    """An environment with what Colab ships, kept until the list or Python changes."""
    what = REQUIREMENTS.read_bytes() + sys.version.encode()
    folder = ROOT / ".cache" / "colab" / hashlib.sha256(what).hexdigest()[:16]
    ready = folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", "-r", REQUIREMENTS], check=True)
        ready.touch()
    return folder


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository whose one commit is this work tree, committed here or not."""
    folder = tmp_path_factory.mktemp("three-clocks")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout
    for name in listed.decode().split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in ("init --quiet", "add --all", "commit --quiet --message tree"):
        subprocess.run([*git, *arguments.split()], check=True, cwd=folder)
    return folder


@pytest.fixture
def session(runtime: Path, tmp_path: Path) -> Path:
    """An environment that sees all of the runtime and has nothing of its own."""
    folder = tmp_path / "session"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages(folder) / "runtime.pth").write_text(f"{site_packages(runtime)}\n")
    kernel = [folder / "bin" / "python", "-m", "ipykernel", "install", "--sys-prefix"]
    subprocess.run(kernel, check=True)
    return folder


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(
    chapter: Path, runtime: Path, session: Path, repository: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(chapter, alone / "chapter.ipynb")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PYTEST", "JUPYTER", "IPYTHON", "MPL"))
    } | {
        "PATH": f"{session / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_DATA_DIR": str(tmp_path / "jupyter"),
        "RECSYS_EDU_SOURCE": f"git+file://{repository}",
    }
    python = session / "bin" / "python"

    subprocess.run(
        [python, "-c", EXECUTE], check=True, cwd=alone, env=environment, timeout=900
    )

    installed = {
        each.name: each
        for each in metadata.distributions(path=[str(site_packages(session))])
    }
    assert set(installed) == {"recsys-edu"}, "Colab's own packages were replaced"
    origin = json.loads(installed["recsys-edu"].read_text("direct_url.json") or "{}")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=True, capture_output=True, cwd=repository
    )
    assert origin["url"] == f"file://{repository}"
    assert origin["vcs_info"]["commit_id"] == head.stdout.decode().strip()
    where = "import torch; print(torch.__file__)"
    seen = subprocess.run([python, "-c", where], check=True, capture_output=True)
    assert Path(seen.stdout.decode().strip()).is_relative_to(site_packages(runtime))
