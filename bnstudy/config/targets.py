"""Calls of the classes and functions that a configuration names by `_target_`.

A record may come from anyone, and Hydra calls whatever a `_target_` names. Therefore, only two
kinds of targets in a record's configuration are called: those that bnstudy provides, each in its
own group, and those that this process trusts: all that its own bnstudy.train configuration names,
and those given with --trust.
"""

import inspect
import logging
import pkgutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from traceback import extract_tb
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from bnstudy.config.schema import Callbacks, Data, Model
from bnstudy.errors import UserError, first_line
from bnstudy.terms import suggest

TARGET = "_target_"
MAX_LISTED_NAMES = 5

# Targets that bnstudy provides, by configuration group. They are the keys of `keys_of`, which maps
# each target to its options.
PROVIDED_TARGETS: Mapping[str, Collection[str]] = {
    "model": Model.keys_of,
    "data": Data.keys_of,
    **{
        f"callbacks.{name}": field.annotation.keys_of  # type: ignore[union-attr]
        for name, field in Callbacks.model_fields.items()
    },
}

# Hydra logs the errors of imports in addition to raising them.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)

_trusted: set[str] = set()


def instantiate_group(group: str, node: Mapping[str, Any], **arguments: Any) -> Any:
    """Call the class or function that a configuration group names, with the group's other keys.

    Args:
        group: Name of the group, such as `model`.
        node: Keys and values of the group.
        arguments: Further arguments.

    Raises:
        UserError: The target cannot be imported, does not take these arguments, or raised an error.
    """
    target = node[TARGET]
    signature = _load_signature(group, target)
    keys = {key: value for key, value in node.items() if not _is_hydra_key(key)}
    if signature and "_args_" not in node:
        try:
            signature.bind(**{**keys, **arguments})
        except TypeError as error:
            names = ", ".join(name for name in signature.parameters if name not in arguments)
            raise UserError(
                f"{group}.{TARGET}={target}: {error}\n"
                f"It takes {names or 'no keys'}; set each with {group}.KEY=VALUE"
            ) from error
    try:
        return instantiate(dict(node), **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if cause is None:
            raise
        frame = extract_tb(cause.__traceback__)[-1]
        raise UserError(
            f"{group}.{TARGET}={target}: {type(cause).__name__}: {first_line(cause)}\n"
            f"Raised in {frame.filename}, line {frame.lineno}"
        ) from error


def select_accepted_arguments(
    group: str, target: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Select the arguments that a class or function names in its signature.

    Args:
        group: Name of the configuration group.
        target: Full name of the class or function.
        arguments: Arguments by name.

    Returns:
        Selected arguments; all of them if Python cannot read the signature.

    Raises:
        UserError: The target cannot be imported.
    """
    signature = _load_signature(group, target)
    names = signature.parameters if signature else arguments
    return {name: value for name, value in arguments.items() if name in names}


def _load_signature(group: str, target: str) -> inspect.Signature | None:
    """Import a class or function, and return its signature; None if Python cannot read it."""
    try:
        function = get_object(target)
    except Exception as error:  # its module may raise any error
        cause = _find_root_cause(error)
        if missing := _find_missing_name(target, cause):
            explanation = _explain_missing_name(*missing)
            raise UserError(f"{group}.{TARGET}={target}: {explanation}") from error
        advice = "Correct the name, or the error in its module"
        if isinstance(cause, ModuleNotFoundError):
            advice = "Install that module, or set PYTHONPATH to the folder that contains it"
        raise UserError(
            f"{group}.{TARGET}={target} cannot be imported "
            f"({type(cause).__name__}: {first_line(cause)})\n{advice}"
        ) from error
    if not callable(function):
        raise UserError(f"{group}.{TARGET}={target} is neither a class nor a function")
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _find_root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _find_missing_name(target: str, cause: BaseException) -> tuple[Any, str] | None:
    """Find the part of a target's name that does not exist.

    Args:
        target: Full name of a class or function.
        cause: Root cause of the failed import.

    Returns:
        Module or class that was found, and the name that it does not have; None if the first module
        was not found, or if a module raised an error.
    """
    match cause:
        case ModuleNotFoundError(name=str(path)) if f"{target}.".startswith(f"{path}."):
            module, _, name = path.rpartition(".")
            return (sys.modules[module], name) if module in sys.modules else None
        case AttributeError(obj=type() as owner, name=str(name)) if name in target.split("."):
            return owner, name
    return None


def _explain_missing_name(owner: Any, name: str) -> str:
    """Explain that a module or class lacks a name, and suggest similar names or list some."""
    kind, title = "module", owner.__name__
    if isinstance(owner, type):
        kind, title = "class", f"{owner.__module__}.{owner.__qualname__}"
    package = title.partition(".")[0]
    names = [
        key
        for key, value in inspect.getmembers(owner, callable)
        if key[0] != "_" and str(getattr(value, "__module__", "")).startswith(package)
    ]
    modules = [module.name for module in pkgutil.iter_modules(getattr(owner, "__path__", ()))]
    known = [*names, *modules]
    listed = ", ".join(known[:MAX_LISTED_NAMES]) + ", ..." * (len(known) > MAX_LISTED_NAMES)
    suggestion = suggest(name, names) or suggest(name, modules)
    hint = suggestion or f"it has {listed or 'no classes or functions'}"
    file = getattr(inspect.getmodule(owner), "__file__", None)
    return (
        f"the {kind} {title} has no {name}; {hint}\nCorrect the name{f' ({file})' if file else ''}"
    )


def trust(targets: Iterable[str]) -> None:
    """Allow records to name some classes and functions, until the end of this process.

    Args:
        targets: Full names of classes and functions, such as `mypackage.nets.Net`. Only these exact
            names are allowed. To trust a module would also allow everything that it imports.
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
    """Verify that a record's configuration names only targets that are provided or trusted.

    Args:
        groups: Configuration groups by name, such as `model` or `callbacks.gradient_norms`.

    Raises:
        UserError: The configuration names a target that is neither provided nor trusted; has one of
            Hydra's other keys for calls, such as `_partial_`, beside a target that is not trusted;
            or has an interpolation, although it is resolved.
    """
    for name, group in groups.items():
        _require_trusted(group, name, PROVIDED_TARGETS.get(name, ()))


def _require_trusted(node: Any, path: str, provided: Collection[str] = ()) -> None:
    match node:
        case dict():
            target = node.get(TARGET)
            is_trusted = isinstance(target, str) and target in _trusted
            is_provided = isinstance(target, str) and target in provided
            if TARGET in node and not is_trusted and not is_provided:
                raise UserError(
                    f"{path}.{TARGET}={target}: a record may only run code that your command "
                    "names\n"
                    f"If you know that code and trust the record, add --trust {target} to "
                    "bnstudy.measure, or repeat the bnstudy.train command that began the run"
                )
            for key, value in node.items():
                if not is_trusted and key != TARGET and _is_hydra_key(key):
                    raise UserError(
                        f"{path}.{key}={value}: no run of bnstudy records such a key\n"
                        "The record was not written by bnstudy; do not use it"
                    )
                _require_trusted(value, f"{path}.{key}")
        case list():
            for index, value in enumerate(node):
                _require_trusted(value, f"{path}.{index}")
        case str() if "${" in node:
            raise UserError(
                f"{path}={node}: bnstudy records values, and no interpolations such as ${{...}}\n"
                "The record was not written by bnstudy; do not use it"
            )


def _is_hydra_key(key: str) -> bool:
    """Check whether a key is one of Hydra's for calls, such as `_target_` and `_partial_`."""
    return key.startswith("_") and key.endswith("_")
