"""Keeps credentials that slipped into a command line or an error's text out of what is shown."""

import os
import re

import pandas as pd

REMOVED = "[removed]"

# What is assigned to a name such as logger.api_key; a password in a URL; keys of Weights & Biases.
ASSIGNED = re.compile(
    r"""((?:api_?key|token|secret|passw(?:or)?d|credentials?)["']?\s*[=:]\s*)(?:"[^"]*"|'[^']*'|\S+)""",
    re.IGNORECASE,
)
IN_URL = re.compile(r"(\w://)[^/\s@]+@")
KEY = re.compile(r"\b(?:wandb_v\d_\w+|[0-9a-f]{40})\b")


def redacted(text: str) -> str:
    """A text without what may be a credential.

    Args:
        text: Of a record. Not a column of commits, which look like keys of Weights & Biases.
    """
    text = ASSIGNED.sub(rf"\1{REMOVED}", text)
    text = IN_URL.sub(rf"\1{REMOVED}@", text)
    text = KEY.sub(REMOVED, text)
    known = os.environ.get("WANDB_API_KEY")
    return text.replace(known, REMOVED) if known else text


def without_credentials(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of a study, command lines and remarks redacted."""
    return runs.assign(
        **{
            column: [redacted(text) if isinstance(text, str) else text for text in runs[column]]
            for column in ("overrides", "remark")
            if column in runs
        }
    )
