"""Sphinx extension that generates the reference from the package.

A line `<!-- generated: NAME -->` of a page is replaced by the Markdown of the function in `PARTS`.
The functions do not need Sphinx: tests call them too.
"""

import contextlib
import importlib
import inspect
import io
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hydra.utils import get_object
from omegaconf import OmegaConf

import bnstudy
from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.schema import FIXED_TRAINER_KEYS, ChosenGroup, Config, Group
from bnstudy.config.values import Expected, OneOf
from bnstudy.metrics import METRICS, SIMILARITIES, Similarity
from bnstudy.metrics.__main__ import SETS, format_bound
from bnstudy.metrics.registry import Declaration
from bnstudy.terms import PER_NORM_OPTIONS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FORMULAS = Path(__file__).parents[1] / "reference" / "formulas.toml"
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)

# Commands and their subcommands, as `python -m bnstudy.COMMAND --help` describes them.
COMMANDS = (
    "train",
    "report",
    "measure",
    "measure similarity",
    "measure map",
    "measure network",
    "sweep",
    "sweep status",
    "dashboard",
    "dashboard push",
    "dashboard sync",
    "dashboard pull",
    "metrics",
)
HEADERS = ("# yaml-language-server", "# @package")  # lines for programs, not for readers
# Groups whose files are shown whole, as each sets keys of several other groups, or Hydra's.
WHOLE_FILES = ("experiment", "debug", "hydra/launcher", "hydra/sweeper")


def expand(page: str) -> str:
    """Replace the markers of a page by the generated Markdown."""
    return MARKER.sub(lambda found: PARTS[found[1]](), page)


# Commands


@cache
def help_of(command: str) -> str:
    """Return what a command prints with `--help`."""
    module, *words = command.split()
    printed = io.StringIO()
    name = "metrics.__main__" if module == "metrics" else module
    main = importlib.import_module(f"bnstudy.{name}").main
    with (
        patch.object(sys, "argv", [f"bnstudy.{module}", *words, "--help"]),
        patch.dict("os.environ", {"COLUMNS": "100"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main()
    return printed.getvalue().strip()


def commands() -> str:
    """Describe each command by its own help."""
    return "\n\n".join(
        f"## `python -m bnstudy.{command}`\n\n```text\n{help_of(command)}\n```"
        for command in COMMANDS
    )


# Configuration


class Option:
    """File of a configuration group.

    Attributes:
        name: Name of the option.
        about: Comment at the top of the file.
        values: Values by key, with those of the file that it begins with.
        remarks: Comments before and beside the keys.
        body: Lines after the comment at the top.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        lines = [line for line in path.read_text().splitlines() if not line.startswith(HEADERS)]
        top = list(takewhile(lambda line: line.startswith("#"), lines))
        self.about = _comment(top)
        self.body = lines[len(top) :]
        self.values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
        self.remarks = _remarks(self.body)
        for parent in self.values.pop("defaults", []):
            # Others are Hydra's own: _self_, and files of its plugins.
            if isinstance(parent, str) and (inherited := path.with_stem(parent)).exists():
                self.values = Option(inherited).values | self.values
                self.remarks = Option(inherited).remarks | self.remarks

    @property
    def is_open(self) -> bool:
        """Whether the class is the user's, so that its keys are not known."""
        return self.values.get("_target_") == "???"

    def default(self, key: str) -> Any:
        """Return the value of a key: the file's, or that of the target's signature.

        Raises:
            KeyError: Neither has one.
        """
        if key in self.values:
            return self.values[key]
        value = inspect.signature(get_object(self.values["_target_"])).parameters[key].default
        if value is inspect.Parameter.empty:
            raise KeyError(key)
        return value


def _comment(lines: list[str]) -> str:
    return " ".join(line.strip().removeprefix("#").strip() for line in lines)


def _remarks(lines: list[str]) -> dict[str, str]:
    """Collect the comments before and beside each key."""
    found, before = {}, []
    for line in lines:
        if line.strip().startswith("#"):
            before.append(line)
        elif key := re.match(r"\s*(\w+):([^#]*)(#.*)?", line):
            found[key[1]] = _comment(before + [key[3]] * bool(key[3]))
            before = []
    return found


def options(group: str) -> list[Option]:
    """Read the files of a group, by name."""
    return [Option(path) for path in sorted((CONFIG_FOLDER / group).glob("*.yaml"))]


def configuration() -> str:
    """Describe every group and key: values, default and meaning."""
    groups = {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if _is_group(field.annotation)
    }
    whole = {name: field for name, field in Config.model_fields.items() if name not in groups}
    train = Option(CONFIG_FOLDER / "train.yaml")
    keys = [
        _entry(name, _text(field.description), _allowed(field), _code(train.values[name]))
        for name, field in whole.items()
    ]
    parts = ["## Keys of the whole run", *keys]
    for name, model in groups.items():
        parts += [f"## `{name}`", _text(model.__doc__), *_group(name, model, train)]
    for name in WHOLE_FILES:
        parts += [f"## `{name}`", *map(_file, options(name))]
    return "\n\n".join(parts)


def groups() -> str:
    """List the options of every group that one chooses on the command line."""
    names = [path.name for path in sorted(CONFIG_FOLDER.iterdir()) if path.is_dir()]
    rows = [
        f"| [`{name}`](../reference/configuration.md#{name}) "
        f"| {', '.join(f'`{each.name}`' for each in options(name))} |"
        for name in names
        if name != "hydra"
    ]
    return _table("group | options", rows)


def norms() -> str:
    """List the normalizations."""
    return _options("norm")


def _options(group: str) -> str:
    rows = [f"| `{each.name}` | {_linked(_text(each.about))} |" for each in options(group)]
    return _table(f"`{group}=` | what", rows)


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Group)


def _group(name: str, model: type[Group], train: Option) -> Iterator[str]:
    files = options(name)
    if files:
        yield _options(name)
    if name == "callbacks":  # a group for each callback
        for key, field in model.model_fields.items():
            callback = next(each for each in files if each.name == key)
            callback.values = callback.values[key]
            yield f"### `callbacks.{key}`"
            yield _text(field.annotation.__doc__)  # type: ignore[union-attr]
            yield from _keys(f"callbacks.{key}", field.annotation, [callback])  # type: ignore[arg-type]
        return
    if not files:  # its keys are in train.yaml
        inside = Option(CONFIG_FOLDER / "train.yaml")
        inside.values = train.values[name]
        files = [inside]
    yield from _keys(name, model, [each for each in files if not each.is_open])
    if name == "trainer":
        listed = ", ".join(f"`{key}`" for key in FIXED_TRAINER_KEYS)
        yield (
            "Every other argument of Lightning's Trainer can be added with `+trainer.KEY=VALUE`, "
            f"except those that bnstudy sets itself: {listed}."
        )


def _keys(group: str, model: type[Group], files: list[Option]) -> Iterator[str]:
    """Describe the keys of a group."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key in fields | dict.fromkeys(key for each in files for key in each.values):
        if key in ("_target_", getattr(model, "chosen_by", "")):
            continue
        field = fields.get(key)
        users = [each for each in files if _has_key(model, each, key)]
        what = [_text(field.description if field else "Argument of Lightning's Trainer.")]
        if (group, key) in PER_NORM_OPTIONS:
            what.append("One value, or one for each norm: `{batchnorm: ..., none: ...}`.")
        what += [_applies(users, files), _remarked(key, users, what[0])]
        allowed = _allowed(field) if field else ""
        yield _entry(f"{group}.{key}", " ".join(filter(None, what)), allowed, _defaults(key, users))


def _entry(key: str, what: str, allowed: str, default: str) -> str:
    facts = [f"Takes {allowed}."] * bool(allowed) + [f"Default: {default}."] * bool(default)
    return "\n".join([f"`{key}`", f": {what}", f": {' '.join(facts)}"])


def _applies(users: list[Option], files: list[Option]) -> str:
    """List the options that have a key, if not all have it."""
    others = [each for each in files if each not in users]
    if not others:
        return ""
    few, word = (users, "For") if len(users) <= len(others) else (others, "Not for")
    return f"{word} {', '.join(f'`{each.name}`' for each in few)}."


def _remarked(key: str, users: list[Option], known: str) -> str:
    """Gather the comments beside a key that say more than its description."""
    found = _grouped((_text(each.remarks.get(key)), each.name) for each in users)
    found = {words: names for words, names in found.items() if words.lower() not in known.lower()}
    if len(found) == 1:
        (words,) = found
        return f"({words})"
    return " ".join(f"({', '.join(names)}: {words})" for words, names in found.items())


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group the second entries of pairs by the first; drop empty ones."""
    found: dict[str, list[str]] = {}
    for words, name in pairs:
        if words:
            found.setdefault(words, []).append(name)
    return found


def _has_key(model: type[Group], option: Option, key: str) -> bool:
    if issubclass(model, ChosenGroup):
        known = model.known_keys(option.values)
        return known is None or key in known
    return True


def _defaults(key: str, users: list[Option]) -> str:
    """Format the default of a key: the most frequent one first, then the options with others."""
    defaults = []
    for each in users:
        with contextlib.suppress(KeyError):
            defaults.append((_code(each.default(key)), each.name))
    found = sorted(_grouped(defaults).items(), key=lambda entry: -len(entry[1]))
    if not found or (len(found) > 1 and len(found[0][1]) == 1):  # each option has its own
        return "; ".join(f"{value} ({', '.join(names)})" for value, names in found)
    return "; ".join(
        [found[0][0], *(f"{value} ({', '.join(names)})" for value, names in found[1:])]
    )


def _allowed(field: Any) -> str:
    """Describe the values that a key takes."""
    for entry in field.metadata:
        if isinstance(entry, OneOf):
            return ", ".join(f"`{option}`" for option in entry.options)
        if isinstance(entry, Expected):
            return _text(entry.words)
    raise TypeError(f"{field}: no description of its values")


def _file(option: Option) -> str:
    body = "\n".join(option.body)
    return f"### `{option.name}`\n\n{_text(option.about)}\n\n```yaml\n{body}\n```"


# Metrics


def metrics() -> str:
    """Describe every metric: formula, range, invariances, needs, sets and source."""
    formulas = tomllib.loads(FORMULAS.read_text())
    sets = {name: OmegaConf.load(CONFIG_FOLDER / "metrics" / f"{name}.yaml").names for name in SETS}
    parts = []
    for family, members in _families():
        parts.append(f"## {family.capitalize()}")
        parts += [_metric(entry, formulas, sets) for entry in members]
    return "\n\n".join(parts)


def families() -> str:
    """List the metrics of each family."""
    rows = [
        f"| [{family}](../reference/metrics.md#{family.replace(' ', '-')}) "
        f"| {', '.join(f'`{entry.name}`' for entry in members)} |"
        for family, members in _families()
    ]
    return _table("family | metrics", rows)


def _families() -> Iterator[tuple[str, Iterator[Declaration]]]:
    declared: list[Declaration] = [*METRICS.values(), *SIMILARITIES.values()]
    return groupby(declared, key=lambda entry: entry.family)


def _metric(entry: Declaration, formulas: Mapping[str, str], sets: Mapping[str, Any]) -> str:
    first, _, rest = inspect.cleandoc(entry.function.__doc__ or "").partition("\n")
    if isinstance(entry, Similarity):
        kept = ["symmetric"] * entry.is_symmetric + ["a metric (a distance)"] * entry.is_metric
        where = f"`python -m bnstudy.measure similarity`; {', '.join(kept)}"
    else:
        named = [name for name in SETS if entry.name in sets[name]]
        where = ", ".join(f"`{name}`" for name in [*named, "full"])
    low, high = map(format_bound, entry.bounds)
    facts = {
        "Range": f"{low} to {high}" + (f"; {entry.direction} is better" if entry.direction else ""),
        "Unchanged by": ", ".join(sorted(entry.invariant_to)),
        "Needs": ", ".join(sorted(entry.needs)),
        "Measured by": where,
        "Source": _linked(_text(entry.source)),
    }
    lines = "\n".join(f"- {what}: {fact}" for what, fact in facts.items() if fact)
    # Each part on a line of its own: a phone is narrow.
    displayed = re.split(r",\s*\\qquad", formulas[entry.name].strip())
    formula = "".join(f"$$\n{part.strip()}\n$$\n\n" for part in displayed)
    return f"### `{entry.name}`\n\n{_text(first)}\n\n{formula}{_text(rest)}\n\n{lines}"


def _linked(source: str) -> str:
    """Make links of arXiv numbers and DOIs."""
    source = re.sub(
        r"arXiv (\d{4}\.\d{5}|\d{4}\.\d{4})", r"[arXiv \1](https://arxiv.org/abs/\1)", source
    )
    return re.sub(r"doi (10\.[^\s,;]+)", r"[doi \1](<https://doi.org/\1>)", source)


# Python API


def api() -> str:
    """Document everything that `import bnstudy` offers."""
    entries = []
    for name in bnstudy.__all__:
        value = getattr(bnstudy, name)
        if inspect.isclass(value):
            entries.append(
                f".. autoclass:: bnstudy.{name}\n   :members:\n   :inherited-members: object\n"
            )
        elif inspect.isfunction(value):
            entries.append(f".. autofunction:: bnstudy.{name}\n")
    return _rst(entries)


def inference() -> str:
    """Document the functions of `bnstudy.study.inference`."""
    from bnstudy.study import inference as module

    entries = []
    for name in module.__all__:
        kind = "class" if inspect.isclass(getattr(module, name)) else "function"
        entries.append(f".. auto{kind}:: {module.__name__}.{name}\n")
    return _rst(entries)


def _rst(entries: list[str]) -> str:
    return "```{eval-rst}\n" + "\n".join(entries) + "```"


# Markdown


def _text(words: str | None) -> str:
    """Escape plain text that is shown as Markdown; keep what is between backticks."""
    parts = (words or "").strip().split("`")
    parts[::2] = [re.sub(r"([\\*_^|<>\[\]$#])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", "\\|") for part in parts[1::2]]
    return "`".join(parts)


def _code(value: Any) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        inside = ", ".join(f"{key}: {each}" for key, each in value.items())
        return f"`{{{inside}}}`"
    return f"`{value}`" if value != "" else ""


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|" + " --- |" * columns, *rows])


PARTS: dict[str, Callable[[], str]] = {
    "api": api,
    "commands": commands,
    "configuration": configuration,
    "families": families,
    "groups": groups,
    "inference": inference,
    "metrics": metrics,
    "norms": norms,
}


def setup(app: "Sphinx") -> dict[str, Any]:
    """Expand the markers of each page when it is read."""

    def read(app: "Sphinx", name: str, source: list[str]) -> None:
        source[0] = expand(source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
