"""The documentation site builds without a warning, and its tutorials lead where they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bnstudy.metrics import METRICS
from tests.conftest import REPOSITORY
from tests.docs import pages
from tests.docs.pages import DOCS

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
TUTORIALS = sorted({fence.page for fence in pages.fences() if "tutorials/" in fence.page})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    built = subprocess.run(
        [*command, str(DOCS), str(folder)],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_needs_no_network(site: Path) -> None:
    """Scripts, styles, fonts and images are local; formulas are MathML."""
    loaded = re.compile(r'<(?:script|img|link rel="(?:stylesheet|preload)")[^>]*="https?:')
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text()), page
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text()
    assert "<math" in (site / "reference" / "metrics.html").read_text()


def test_the_reference_is_whole_and_can_be_searched(site: Path) -> None:
    metrics = (site / "reference" / "metrics.html").read_text()
    assert all(f'<span class="pre">{name}</span>' in metrics for name in METRICS)
    assert "silhouett" in (site / "searchindex.js").read_text()  # as it is stemmed
    assert 'id="bnstudy.capture"' in (site / "reference" / "api.html").read_text()
    commands = (site / "reference" / "commands.html").read_text()
    assert all(option in commands for option in ("--baseline", "--watch", "--epochs", "sweep.redo"))


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_a_tutorial_runs_from_top_to_bottom(tutorial: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "2",
        "MPLBACKEND": "agg",
    }
    steps = [fence for fence in pages.fences() if fence.page == tutorial and not fence.not_run]
    for step in steps:
        match step.language:
            case "sh":
                command = ["bash", "-e", "-c", step.code]
            case "python" if step.file:
                (tmp_path / step.file).write_text(step.code)
                continue
            case "python":
                command = ["python", "-c", step.code]
            case language if script := re.fullmatch(r"\{literalinclude\} (\S+)", language):
                command = ["python", str((REPOSITORY / tutorial).parent / script[1])]
            case _:
                continue
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
