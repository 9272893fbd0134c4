"""Types of configuration values, with the descriptions used in error messages."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

NOT_ALLOWED = "not_allowed"  # type of errors whose message describes the allowed values


@dataclass(frozen=True)
class Expected:
    """Annotation with a description of the allowed values, which is the message of the error.

    The error refers to the whole value, for example to a list if one of its items is wrong.

    Attributes:
        words: Allowed values; the user reads "expected <words>".
    """

    words: str

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Build the validation schema; called by pydantic."""
        return _with_error_message(handler(source), self.words)


class OneOf:
    """Annotation of text that is restricted to some options."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Build the validation schema; called by pydantic."""
        schema = core_schema.literal_schema(list(self.options))
        return _with_error_message(schema, ", ".join(self.options))


def _with_error_message(schema: CoreSchema, words: str) -> CoreSchema:
    return core_schema.custom_error_schema(schema, NOT_ALLOWED, custom_error_message=words)


Boolean = Annotated[bool, Expected("true or false")]
OptionalBoolean = Annotated[bool | None, Expected("true, false or null")]
Text = Annotated[str, Expected("text")]
OptionalText = Annotated[str | None, Expected("text, or null")]
FolderName = Annotated[
    str,
    Field(pattern=r"^[^./%][^/%]*$"),  # submitit replaces %j and the like in paths
    Expected("a folder's name, without / and % and not beginning with a dot"),
]
FolderPath = Annotated[str, Field(min_length=1), Expected("a folder's path")]

Index = Annotated[int, Field(ge=0), Expected("an integer of at least 0")]
Count = Annotated[int, Field(ge=1), Expected("an integer of at least 1")]
OptionalCount = Annotated[Count | None, Expected("an integer of at least 1, or null")]
AtLeastTwo = Annotated[int, Field(ge=2), Expected("an integer of at least 2")]

Number = Annotated[float, Expected("a number")]
NotNegative = Annotated[float, Field(ge=0), Expected("a number of at least 0")]
FiniteNotNegative = Annotated[
    float, Field(ge=0, allow_inf_nan=False), Expected("a finite number of at least 0")
]
Positive = Annotated[float, Field(gt=0), Expected("a number above 0")]
PositiveShare = Annotated[float, Field(gt=0, le=1), Expected("a number above 0, at most 1")]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1), Expected("a number from 0 to below 1")]
