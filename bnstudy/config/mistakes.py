"""Mistakes in a configuration, explained to the user."""

import difflib
import sys
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bnstudy.errors import UserError, first_line
from bnstudy.files import CANNOT_WRITE, cannot_write

EXTRAS = {"optuna", "ray"}  # options that are named as what has to be installed for them


def explain(error: BaseException) -> str | None:
    """A user's mistake in one or two lines; None for anything that is a bug of ours."""
    chain = _causes(error)  # resolvers and Hydra wrap what went wrong
    for cause in chain:
        if isinstance(cause, UserError):
            return str(cause)
    for cause in chain:
        match cause:
            case MissingConfigException(missing_cfg_file=str(missing), options=list(options)):
                group, _, value = missing.rpartition("/")
                extra = f"\nIt comes with pip install -e '.[{value}]'" * (value in EXTRAS)
                return f"{group}={value} does not exist; it takes {', '.join(options)}{extra}"
            case OmegaConfBaseException(full_key=str(key)) if key:
                return _explain_key(key, cause)
            case OSError(filename=str(path), errno=number) if number in CANNOT_WRITE:
                return cannot_write(path, cause)
            case OSError(errno=number) if number in CANNOT_WRITE:
                return cannot_write("the output folder", cause)
    if isinstance(error, HydraException):
        return " ".join(str(error).split())
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what it came of, and so on."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        wrapped = isinstance(cause, OmegaConfBaseException | HydraException)
        cause = cause.__cause__ or (cause.__context__ if wrapped else None)
    return chain


def _explain_key(key: str, error: OmegaConfBaseException) -> str:
    given = next((word for word in sys.argv if word.lstrip("+~").startswith(f"{key}=")), key)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing: set it with {key}=..."
    if not isinstance(error, AttributeError | KeyError):
        return f"{given}: {first_line(error)}"
    parent = error.parent_node
    allowed = sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
    add = f", or add it to Lightning's with +{given}" if key.startswith("trainer.") else ""
    return f"{given}: there is no such key; {hint(key.rpartition('.')[2], allowed)}{add}"


def hint(key: str, known: Sequence[str]) -> str:
    """Words that say which keys there are instead of one that there is not."""
    near = difflib.get_close_matches(key, known)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
