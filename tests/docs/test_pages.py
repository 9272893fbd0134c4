"""The documentation is true: links lead somewhere, commands exist, snippets run."""

import argparse
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from omegaconf import OmegaConf

import bnstudy
from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import resolve, select_own_classes
from bnstudy.config.schema import Config, Group, validate
from bnstudy.measure import compose_metrics
from bnstudy.metrics import METRICS, SIMILARITIES
from bnstudy.sweeps.search_config import register_search
from tests.conftest import REPOSITORY, Compose
from tests.docs import pages
from tests.docs.pages import DOCS, PAGES, Command, Fence
from tests.study.studies import Studies

COMMANDS = pages.commands()
TRAIN = [command for command in COMMANDS if command.module == "bnstudy.train"]
OTHERS = [
    command
    for command in COMMANDS
    if (command.module or "").startswith("bnstudy.") and command not in TRAIN
]
SNIPPETS = [fence for fence in pages.fences() if fence.language == "python"]

EXAMPLES = DOCS / "examples" / "own_network" / "my_conf"
CONF_FOLDERS = (CONFIG_FOLDER, EXAMPLES)
# Launchers and sweepers that Hydra's plugins bring; arguments of functions.
OF_HYDRA = ("joblib", "ray", "basic", "optuna")
OF_PYTHON = ("every_n_epochs",)
KEYS = {
    f"{group}{key}"
    for name, field in Config.model_fields.items()
    for group, keys in (
        [(f"{name}.", [part.alias or each for each, part in field.annotation.model_fields.items()])]
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
        else [("", [name])]
    )
    for key in keys
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for token in pages.inline(page):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not target or re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        is_anchor = not anchor or (linked in PAGES and anchor in pages.anchors(linked))
        if not linked.exists() or not is_anchor:
            wrong.append(target)
    assert not wrong


def test_every_page_is_in_the_navigation() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {path.resolve() for name in names for path in page.parent.glob(f"{name}.md")}
    assert {page for page in PAGES if DOCS in page.parents} == listed


def one_value(override: Override) -> str:
    """An override, or the last of the values that it sweeps."""
    match override.value():
        case ChoiceSweep() as choice:
            return f"{override.get_key_element()}={choice.list[-1]}"
        case IntervalSweep() as interval:
            return f"{override.get_key_element()}={interval.start}"
        case _:
            return str(override.input_line)


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAIN, ids=str)
def test_a_training_commands_options_exist(command: Command, composed: Compose) -> None:
    """Check that its options are files, and its keys can be set beside these options.

    Options without a key of their group are not composed, which takes 0.3 s: test_shipped.py does.
    """
    register_search()
    words = select_own_classes([word for word in command.words[3:] if word != "-m"])
    if words in (["--help"], ["--cfg", "job"]):
        return
    if words[0] == "--config-dir":
        words = words[2:]
    groups, keys = {}, {}
    for override in OverridesParser.create().parse_overrides(words):
        key, value = override.get_key_element(), override.value()
        if (CONFIG_FOLDER / key).is_dir():
            for name in np.ravel(value.list if isinstance(value, ChoiceSweep) else value):
                files = [root / key / f"{name}.yaml" for root in CONF_FOLDERS]
                assert name in OF_HYDRA or any(file.exists() for file in files)
        kind = groups if (CONFIG_FOLDER / key).is_dir() else keys
        kind[key] = one_value(override)
    parts = {key.replace(".", "/") for key in keys}
    needed = [
        word
        for group, word in groups.items()
        if group == "experiment" or any(part.startswith(f"{group}/") for part in parts)
    ]
    if needed or any("." in key for key in keys):
        validate(
            resolve(composed(f"hydra.searchpath=[file://{EXAMPLES}]", *needed, *keys.values()))
        )
    else:
        assert keys.keys() <= KEYS


class Parsed(Exception):
    """The command line was understood."""


@pytest.mark.slow
@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_another_commands_options_exist(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def parse_and_stop(*arguments: Any) -> None:
            raise Parsed(parse(*arguments))

        return parse_and_stop

    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(parse))
    _, _, module, *words = command.words
    if not words:
        assert find_spec(module)
        return
    monkeypatch.setattr("sys.argv", [module, *words])
    with pytest.raises((Parsed, SystemExit)) as stop:
        import_module("bnstudy.metrics.__main__" if module == "bnstudy.metrics" else module).main()
    assert stop.type is Parsed or stop.value.code == 0, capsys.readouterr().err  # 0: --help
    compose_metrics([word for word in words if word.startswith("metrics")])


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.module is None], ids=str
)
def test_what_other_commands_name_exists(command: Command) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    match command.words:
        case ("make", target):
            assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        case ("pip", "install", "-e", what):
            extra = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
            assert extra
            assert not extra[1] or extra[1] in project["optional-dependencies"]
        case (".venv/bin/pre-commit", "install") | ("wandb", "leet", _) | ("for", *_):
            pass
        case ("python", script, "NAME") if script.startswith("benchmarks/"):
            assert (REPOSITORY / script).exists()
        case ("python" | "do", script) if script.endswith(".py"):
            assert script in [fence.file for fence in pages.fences()]
        case ("python", "-c", code):
            compile(code, str(command), "exec")
        case _:
            pytest.fail(f"no test knows this command: {command}")


def test_every_setting_inside_a_sentence_exists() -> None:
    wrong = []
    for page in PAGES:
        for token in pages.inline(page):
            setting = re.fullmatch(r"((?:hydra/)?[a-z_]+(?:\.[a-z_]+)*)=(\S*)", token.content)
            if token.type != "code_inline" or not setting or DOCS / "examples" in page.parents:
                continue
            key, value = setting.groups()
            if value in ("True", "False") or '"' in value or key in OF_PYTHON:
                continue
            if (CONFIG_FOLDER / key).is_dir():
                is_option = (CONFIG_FOLDER / key / f"{value}.yaml").exists()
                is_known = is_option or not value or not value.islower() or value in OF_HYDRA
            else:
                is_open = key.startswith(("hydra.", "callbacks.", "trainer."))
                is_known = key in KEYS or is_open
            if not is_known:
                wrong.append((page.name, token.content))
    assert not wrong


@pytest.fixture
def _registries() -> Iterator[None]:
    """Forget what a snippet registers."""
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_registries")
@pytest.mark.filterwarnings("default")  # a snippet warns where users would be warned
@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_runs(
    snippet: Fence, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile(snippet.code, str(snippet), "exec")
    if snippet.not_run or snippet.file:
        return
    monkeypatch.chdir(tmp_path)
    if "multirun/" in snippet.code:
        study = Studies(composed, tmp_path / "multirun" / "mnist5k_cnn")
        for seed in range(2):
            for norm in ("none", "batchnorm"):
                study.add(norm, seed, layers={"silhouette": [seed / 10, 0.2]})
    exec(code, {"__name__": "__main__"})


def test_every_metric_has_a_formula_and_every_formula_a_metric() -> None:
    formulas = tomllib.loads(pages.generated.FORMULAS.read_text())
    assert formulas.keys() == {*METRICS, *SIMILARITIES}


def test_every_command_is_in_the_reference() -> None:
    modules = {
        path.stem
        for path in (REPOSITORY / "bnstudy").glob("*.py")
        if "__main__" in path.read_text()
    }
    assert modules | {"metrics"} == {name.split()[0] for name in pages.generated.COMMANDS}


def test_the_architectures_picture_is_that_of_the_contracts() -> None:
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]
    layers = tools["importlinter"]["contracts"][0]["layers"]
    picture = (DOCS / "architecture.svg").read_text()
    drawn = re.findall(r'class="room"[^>]*>([^<]+)<', picture)
    assert [sorted(room.split()) for room in drawn] == [
        sorted(name.removeprefix("bnstudy.") for name in layer.split(" | ")) for layer in layers
    ]


def test_the_citation_is_of_this_version() -> None:
    citation = OmegaConf.load(REPOSITORY / "CITATION.cff")
    assert citation.version == bnstudy.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_readme_is_a_front_door() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 180
