"""Pages of the documentation as their readers see them: headings, links, code, commands."""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(path for path in DOCS.rglob("*.md") if DOCS / "build" not in path.parents),
    ]
)
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")

sys.path.append(str(DOCS / "extensions"))
import generated  # noqa: E402

NAMES = [f"python -m bnstudy.{name}" for name in generated.COMMANDS]  # without their arguments


@dataclass(frozen=True)
class Fence:
    """Block of code.

    Attributes:
        page: Page, relative to the repository.
        line: Its number in the page.
        language: Such as `sh`.
        code: Its text.
        not_run: Why it is not run; empty if it is.
    """

    page: str
    line: int
    language: str
    code: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the reader writes, if the first line names one."""
        named = re.match(r"# (\S+\.py)\b", self.code)
        return named[1] if named else None


@dataclass(frozen=True)
class Command:
    """Command of a shell block, split into words."""

    where: str
    words: tuple[str, ...]

    @property
    def module(self) -> str | None:
        """Module that `python -m` runs."""
        is_python = self.words[0].rpartition("/")[2] == "python" and self.words[1] == "-m"
        return self.words[2] if is_python else None

    def __str__(self) -> str:
        return f"{self.where} {shlex.join(self.words)}"


@cache
def text(page: Path) -> str:
    """The page with what it includes and with its generated parts, without the help texts."""

    def included(found: re.Match[str]) -> str:
        return (page.parent / found[1]).read_text()

    whole = re.sub(r"```\{include\} (\S+)\n.*?```", included, page.read_text(), flags=re.DOTALL)
    with patch.object(generated, "help_of", lambda command: ""):
        return generated.expand(whole)


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text(page))


def inline(page: Path) -> Iterator[Token]:
    """Yield the parts of a page's sentences; not of what it includes, which has a page too."""
    if "```{include}" not in page.read_text():
        found = tokens(page)
        for before, token in pairwise(found):
            if before.type != "heading_open":
                yield from token.children or ()


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and MyST make them."""
    found = tokens(page)
    titles = [
        "".join(part.content for part in after.children or ())
        for token, after in pairwise(found)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def fences() -> list[Fence]:
    found = []
    for page in PAGES:
        if "```{include}" in page.read_text():
            continue
        before = ""
        for token in tokens(page):
            if token.type == "fence":
                reason = NOT_RUN.match(before)
                name = str(page.relative_to(REPOSITORY))
                line = token.map[0] + 1 if token.map else 0
                why = reason[1] if reason else ""
                found.append(Fence(name, line, token.info.strip(), token.content, why))
            before = token.content
    return found


def commands() -> list[Command]:
    """Every command of the shell blocks, and every `python -m bnstudy...` inside a sentence."""
    found = {}
    for fence in fences():
        if fence.language in ("sh", "bash"):
            for line in fence.code.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    found[tuple(words)] = str(fence)
    for page in PAGES:
        for token in inline(page):
            if token.type == "code_inline" and token.content.startswith("python -m bnstudy."):
                words = shlex.split(token.content)
                if token.content not in NAMES and not words[-1].endswith("="):
                    found.setdefault(tuple(words), str(page.relative_to(REPOSITORY)))
    return [Command(where, words) for words, where in found.items()]
