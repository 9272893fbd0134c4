"""Error messages for mistakes in a configuration."""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import is_group
from bnstudy.errors import UserError, first_line
from bnstudy.files import CannotWrite, is_write_error
from bnstudy.redaction import redact
from bnstudy.terms import suggest

# Hydra's messages about several values without -m.
SEVERAL_VALUES = re.compile(
    r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'(?:\n| requires)"
)
# Beginnings of Hydra's messages about a group that is set to null or to a number, and about a
# character that it reads only in quotes.
NO_OPTION = "Config group override must be a string or a list."
UNQUOTED = "LexerNoViableAltException"
EXTRAS = {"optuna", "ray"}  # options with the name of the extra that they need


def explain(error: BaseException) -> str | None:
    """Explain a user's mistake in one or two lines, without credentials.

    Returns:
        Message for the user; None if the error is not a known kind of user mistake.
    """
    message = _explain(error)
    return None if message is None else redact(message)


def _explain(error: BaseException) -> str | None:
    chain = _causes(error)  # resolvers and Hydra wrap the original error
    for cause in chain:
        if isinstance(cause, UserError):
            return str(cause)
    for cause in chain:
        match cause:
            case MissingConfigException(missing_cfg_file=str(missing), options=list(options)):
                group, _, value = missing.rpartition("/")
                extra = f"\nIt comes with pip install -e '.[{value}]'" * (value in EXTRAS)
                allowed = "; ".join(filter(None, (", ".join(options), suggest(value, options))))
                return f"{group}={value} does not exist; expected {allowed}{extra}"
            case MissingConfigException(missing_cfg_file=str(missing)):  # an entry of a list
                group, _, value = missing.rpartition("/")
                options = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
                return f"{group}=[{value}]: there is no {value}; {hint(value, options)}"
            case ValueError() if str(cause).startswith(NO_OPTION):
                return _explain_option(kind=str(cause).rpartition(" ")[2])
            case OverrideParseException(override=str(override)) if UNQUOTED in str(cause):
                return _explain_unquoted(override)
            case OmegaConfBaseException(full_key=str(key)) if key:
                return _explain_key(key, cause)
            case OSError(filename=path) if is_write_error(cause):
                return str(CannotWrite(path or "the output folder", cause))
    if not isinstance(error, HydraException):
        return None
    if "" in sys.argv:
        return "an argument is empty, perhaps a shell variable that is not set; remove it"
    if sweep := SEVERAL_VALUES.match(str(error)):
        message = (
            f"{sweep[1]}: several values are a sweep, which bnstudy.train runs with -m at the end"
        )
        if is_group(sweep[1].partition("=")[0]):
            return message
        return f"{message}; a list is written in brackets, KEY=[...]"
    return " ".join(str(error).split())


def _causes(error: BaseException) -> list[BaseException]:
    """List the error and the chain of its causes."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        wrapped = isinstance(cause, OmegaConfBaseException | HydraException)
        cause = cause.__cause__ or (cause.__context__ if wrapped else None)
    return chain


def _explain_option(kind: str) -> str:
    """Explain that a group is set to a value that is not the name of an option.

    Args:
        kind: Name of the value's type, such as NoneType. Hydra does not name the group.
    """
    parser = OverridesParser.create()
    for word in sys.argv:
        with suppress(HydraException):
            axis = parser.parse_override(word)
            group = axis.key_or_group
            if not (CONFIG_FOLDER / group).is_dir():
                continue
            values = axis.sweep_string_iterator() if axis.is_discrete_sweep() else [word]
            for value in (text.rpartition("=")[2] for text in values):
                if type(parser.parse_override(f"{group}={value}").value()).__name__ == kind:
                    options = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
                    # Hydra and its plugins have further options of its own groups.
                    expected = "the name of an option" if "/" in group else ", ".join(options)
                    return f"{group}={value} does not exist; expected {expected}"
    return "a config group is set to null or a number; expected the name of an option"


def _explain_unquoted(override: str) -> str:
    key, _, value = override.partition("=")
    quoted = "..." if re.search(r"""["'\\,\[\](){}]""", value) else value
    corrected = f'{key}="{quoted}"'
    try:
        OverridesParser.create().parse_override(corrected)
    except HydraException:
        return f"{override}: it cannot be read\nWrite KEY=VALUE, without spaces around ="
    return (
        f"{override}: it has a character that must be in quotes\n"
        f"Write '{corrected}', with the single quotes for the shell"
    )


def _explain_key(key: str, error: OmegaConfBaseException) -> str:
    override = next((word for word in sys.argv if word.lstrip("+~").startswith(f"{key}=")), key)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing: set it with {key}=..."
    if not isinstance(error, AttributeError | KeyError):
        return f"{override}: {first_line(error)}"
    parent = error.parent_node
    allowed = sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
    message = f"{override}: there is no such key; {hint(key.rpartition('.')[2], allowed)}"
    if key.startswith("trainer."):
        message += f"\nTo pass it to Lightning's Trainer, write +{override}"
    return message


def hint(key: str, known: Sequence[str]) -> str:
    """Suggest similar keys for an unknown key, or else list the known keys."""
    return suggest(key, known) or f"there are {', '.join(known) or 'none'}"
