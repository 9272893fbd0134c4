"""Removal of credentials from command lines and error messages that a report shows."""

import os
import re

import pandas as pd

REMOVED = "[removed]"

# Values of names such as logger.api_key; passwords in URLs; keys of Weights & Biases.
ASSIGNED = re.compile(
    r"""((?:api_?key|token|secret|passw(?:or)?d|credentials?)["']?\s*[=:]\s*)(?:"[^"]*"|'[^']*'|\S+)""",
    re.IGNORECASE,
)
IN_URL = re.compile(r"(\w://)[^/\s@]+@")
KEY = re.compile(r"\b(?:wandb_v\d_\w+|[0-9a-f]{40})\b")


def redact(text: str) -> str:
    """Remove possible credentials from a text.

    Args:
        text: Text of a record, without commits, which look like keys of Weights & Biases.
    """
    text = ASSIGNED.sub(rf"\1{REMOVED}", text)
    text = IN_URL.sub(rf"\1{REMOVED}@", text)
    text = KEY.sub(REMOVED, text)
    known = os.environ.get("WANDB_API_KEY")
    return text.replace(known, REMOVED) if known else text


def redact_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Redact the command lines and remarks of a study's runs."""
    return runs.assign(
        **{
            column: [redact(text) if isinstance(text, str) else text for text in runs[column]]
            for column in ("overrides", "remark")
            if column in runs
        }
    )
