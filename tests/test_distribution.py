"""The wheel and the sdist: built, checked, installed, and used from another folder."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import bnstudy
from bnstudy.config import CONFIG_FOLDER
from tests.conftest import REPOSITORY, description, only_cell

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command that has to succeed; return what it printed."""
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel, built from the sdist, and the sdist, by suffix."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(REPOSITORY), cwd=folder)
    return {path.suffix: path for path in folder.iterdir()}


def test_the_metadata_of_wheel_and_sdist_are_valid(distributions: dict[str, Path]) -> None:
    pytest.importorskip("twine")
    paths = map(str, distributions.values())
    run(sys.executable, "-m", "twine", "check", "--strict", *paths, cwd=REPOSITORY)


def test_wheel_and_sdist_have_what_they_need_and_the_wheel_no_more(
    distributions: dict[str, Path],
) -> None:
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        names = set(wheel.namelist())
    files = {path.relative_to(CONFIG_FOLDER) for path in CONFIG_FOLDER.rglob("*.yaml")}
    assert {f"bnstudy/conf/{path}" for path in files} <= names
    assert "bnstudy/docs/schema/config.json" in names
    assert "bnstudy/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "bnstudy",
        "hydra_plugins",
        f"bnstudy-{bnstudy.__version__}.dist-info",
    }
    with tarfile.open(distributions[".gz"]) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "conf/train.yaml"} <= inside


def test_the_wheel_is_used_from_another_folder(
    distributions: dict[str, Path], tmp_path: Path
) -> None:
    """Install the wheel in a new environment, which borrows the dependencies of this one."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    run(python, "-m", "pip", "install", "--no-deps", str(distributions[".whl"]), cwd=tmp_path)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # A .pth file inside the borrowed folder is not followed: the checkout's package is not found.
    borrowed = next(path for path in sys.path if path.endswith("site-packages"))
    (site_packages / "borrowed.pth").write_text(f"{borrowed}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(
        python, "-c", "import bnstudy; print(bnstudy.__file__)", cwd=elsewhere, PYTHONPATH=""
    )
    assert Path(where.strip()).is_relative_to(site_packages)
    arguments = ("norm=batchnorm", "debug=fast", "study=wheel")
    run(python, "-m", "bnstudy.train", *arguments, cwd=elsewhere, PYTHONPATH="")
    assert description(only_cell(elsewhere / "multirun"))["status"] == "completed"
    run(python, "-m", "bnstudy.report", "multirun/wheel", cwd=elsewhere, PYTHONPATH="")
    assert (elsewhere / "multirun" / "wheel" / "report" / "index.html").exists()
