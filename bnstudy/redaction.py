"""Removal of credentials from what is recorded, logged, shown and uploaded."""

import logging
import os
import re
from typing import Any

REMOVED = "[removed]"

_NAME = (
    r"(?:api[_-]?key|access[_-]?key|auth(?:orization)?|token|secret|passw(?:or)?d|passphrase"
    r"|credentials?)"
)
_VALUE = r"""(?:(?:Bearer|Basic)\s+)?(?:\[removed\]|"[^"]*"|'[^']*'|[^\s"']+)"""
_NAMED_VALUES = [
    # Values of names such as logger.api_key, but not of options such as class_token=true, and not
    # expressions in f-strings.
    (
        re.compile(
            rf"""({_NAME}["']?\s*[=:]\s*)(?!\{{|(?:true|false|null|None)\b){_VALUE}""",
            re.IGNORECASE,
        ),
        rf"\1{REMOVED}",
    ),
    (re.compile(rf"(--?[\w-]*{_NAME}\s+)(?!-){_VALUE}", re.IGNORECASE), rf"\1{REMOVED}"),
]
# Quoted values in the source of a program, such as api_key: str = "..."; `token = tokens[0]` is no
# credential.
_NAMED_LITERALS = [
    (
        re.compile(
            rf"""({_NAME}["']?\]?\s*(?::[^=:"',]*=|[=:])\s*\w{{0,2}}(["']))(?:(?!\2).)+(?=\2)""",
            re.IGNORECASE,
        ),
        rf"\1{REMOVED}",
    )
]
_LITERAL = re.compile(r"""(["'])(?:(?!\1).)*\1""")
_UNNAMED_VALUES = [
    (re.compile(r"\b(Bearer\s+)[\w.~+/=-]{6,}"), rf"\1{REMOVED}"),
    # Users and passwords in URLs. Hydra escapes the colons of a value.
    (re.compile(r"""(\w\\?:\\?/\\?/)[^\s/"']+@"""), rf"\1{REMOVED}@"),
    # Keys of GitHub, AWS, GitLab, Hugging Face, OpenAI, Slack, Google and W&B; JSON web tokens.
    (
        re.compile(
            r"\b(?:gh[opsur]_\w{8,}|github_pat_\w{8,}|A[KS]IA[0-9A-Z]{8,}|glpat-[\w-]{8,}"
            r"|hf_\w{16,}|sk-[\w-]{16,}|xox[a-z]-[\w-]{8,}|AIza[\w-]{30,}|wandb_v\d_\w+"
            r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)"
        ),
        REMOVED,
    ),
]
_WANDB_KEY = re.compile(r"\b[0-9a-f]{40}\b")
_SECRET_KEY = re.compile(rf"(?:^|[_-]){_NAME}$", re.IGNORECASE)


def redact(text: str, is_program: bool = False) -> str:
    """Remove what may be a credential from a text.

    Args:
        text: Command line, message, log or source. Hashes of 40 hexadecimal digits in it are
            removed too, because they look like keys of W&B.
        is_program: Whether the text is the source of a program; then only quoted values of names
            are removed, because others are expressions.

    Example:
        >>> redact("data.root=https://me:1234@host/data --api-key abc")
        'data.root=https://[removed]@host/data --api-key [removed]'
        >>> redact("token = tokens[0]; api_key = 'abc'", is_program=True)
        "token = tokens[0]; api_key = '[removed]'"
    """
    return _WANDB_KEY.sub(REMOVED, _redact(text, is_program))


def redact_values(values: Any) -> Any:
    """Remove what may be a credential from plain values, such as a configuration.

    Hashes of 40 digits are kept, because they may be the revision of a model.

    Args:
        values: Dictionaries, lists and other values, nested; not changed.

    Returns:
        The same values, with `REMOVED` in place of text that may be a credential.

    Example:
        >>> redact_values({"token": "abc", "revision": "0" * 40, "urls": ["s3://key:word@host"]})
        {'token': '[removed]', 'revision': '0000000000000000000000000000000000000000', \
'urls': ['s3://[removed]@host']}
    """
    match values:
        case dict():
            return {
                key: REMOVED
                if isinstance(value, str) and value and _SECRET_KEY.search(str(key))
                else redact_values(value)
                for key, value in values.items()
            }
        case list():
            return [redact_values(value) for value in values]
        case str():
            return _redact(values)
        case _:
            return values


class RedactingFormatter(logging.Formatter):
    """Formatter of log files that removes credentials, also from tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record of Python's logging."""
        return redact(super().format(record))


def _redact(text: str, is_program: bool = False) -> str:
    if is_program:  # a quoted text may be a command line
        text = _LITERAL.sub(lambda match: _redact(match[0]), text)
    named = _NAMED_LITERALS if is_program else _NAMED_VALUES
    for pattern, replacement in named + _UNNAMED_VALUES:
        text = pattern.sub(replacement, text)
    wandb_key = os.environ.get("WANDB_API_KEY")
    return text.replace(wandb_key, REMOVED) if wandb_key else text
