"""Classes and functions that a recorded configuration may name.

A record may come from anyone, and Hydra calls whatever a `_target_` names. Of a record's
configuration, only the targets that bnstudy provides are called, each in its own group, and those
that the user has named on the command line of this process.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from bnstudy.config.schema import Callbacks, Data, Model
from bnstudy.errors import UserError

TARGET = "_target_"

KNOWN: Mapping[str, Collection[str]] = {
    "model": Model.keys_of,
    "data": Data.keys_of,
    **{
        f"callbacks.{name}": field.annotation.keys_of  # type: ignore[union-attr]
        for name, field in Callbacks.model_fields.items()
    },
}

_trusted: set[str] = set()


def trust(targets: Iterable[str]) -> None:
    """Allow records to name some classes and functions, until the end of this process.

    Args:
        targets: Full names, such as `mypackage.nets.Net`. The name of a module would allow all that
            the module has imported.
    """
    _trusted.update(targets)


def find_targets(node: Any) -> Iterator[str]:
    """Yield each target that a configuration names, at any depth."""
    match node:
        case dict():
            if isinstance(target := node.get(TARGET), str):
                yield target
            for value in node.values():
                yield from find_targets(value)
        case list():
            for value in node:
                yield from find_targets(value)


def require_trusted(groups: Mapping[str, Any]) -> None:
    """Verify that a record's configuration names only targets that are known or trusted.

    Args:
        groups: Configuration groups by name, such as `model` or `callbacks.gradient_norms`.

    Raises:
        UserError: It names another target, has options of Hydra's for calling a known target, or
            has interpolations, which a resolved configuration does not have.
    """
    for name, group in groups.items():
        _require(group, name, KNOWN.get(name, ()))


def _require(node: Any, place: str, known: Collection[str] = ()) -> None:
    match node:
        case dict():
            target = node.get(TARGET)
            trusted = isinstance(target, str) and target in _trusted
            if TARGET in node and not trusted and not (isinstance(target, str) and target in known):
                raise UserError(
                    f"{place}.{TARGET}={target}: a record's configuration does not run code that "
                    "this command does not name\n"
                    f"If you know that code, and trust the record, add --trust {target}"
                )
            for key, value in node.items():
                if not trusted and key != TARGET and _is_hydras(key):
                    raise UserError(
                        f"{place}.{key}={value}: no run of bnstudy records such a key\n"
                        "The record was not written by bnstudy; do not use it"
                    )
                _require(value, f"{place}.{key}")
        case list():
            for number, value in enumerate(node):
                _require(value, f"{place}.{number}")
        case str() if "${" in node:
            raise UserError(
                f"{place}={node}: a record has values, and no ${{...}} to be filled in here\n"
                "The record was not written by bnstudy; do not use it"
            )


def _is_hydras(key: str) -> bool:
    """Return whether Hydra gives a meaning to a key, as to _partial_ and _args_."""
    return key.startswith("_") and key.endswith("_")
