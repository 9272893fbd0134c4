"""Types of configuration values, with the descriptions used in error messages."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

NOT_ALLOWED = "not_allowed"  # type of errors whose message describes the allowed values


@dataclass(frozen=True)
class Takes:
    """Annotation that describes the values of a type in the error message for any other value.

    The error refers to the whole value, for example to a list if one of its items is wrong.
    """

    words: str

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Build the validation schema; called by pydantic."""
        return _named(handler(source), self.words)


class OneOf:
    """Annotation of text that is restricted to some options."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Build the validation schema; called by pydantic."""
        return _named(core_schema.literal_schema(list(self.options)), ", ".join(self.options))


def _named(schema: CoreSchema, words: str) -> CoreSchema:
    return core_schema.custom_error_schema(schema, NOT_ALLOWED, custom_error_message=words)


Boolean = Annotated[bool, Takes("true or false")]
OptionalBoolean = Annotated[bool | None, Takes("true, false or null")]
Text = Annotated[str, Takes("text")]
OptionalText = Annotated[str | None, Takes("text, or null")]
FolderName = Annotated[
    str,
    Field(pattern=r"^[^./%][^/%]*$"),  # submitit replaces %j and the like in paths
    Takes("a folder's name, without / and % and not beginning with a dot"),
]
FolderPath = Annotated[str, Field(min_length=1), Takes("a folder's path")]

Index = Annotated[int, Field(ge=0), Takes("an integer of at least 0")]
Count = Annotated[int, Field(ge=1), Takes("an integer of at least 1")]
OptionalCount = Annotated[Count | None, Takes("an integer of at least 1, or null")]
Several = Annotated[int, Field(ge=2), Takes("an integer of at least 2")]

Number = Annotated[float, Takes("a number")]
NotNegative = Annotated[float, Field(ge=0), Takes("a number of at least 0")]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False), Takes("a finite number of at least 0")]
Positive = Annotated[float, Field(gt=0), Takes("a number above 0")]
Share = Annotated[float, Field(gt=0, le=1), Takes("a number above 0, at most 1")]
Fraction = Annotated[float, Field(ge=0, lt=1), Takes("a number from 0 to below 1")]
