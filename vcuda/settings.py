"""What the settings of all our daemons are made of: types of fields, and errors that name the field."""

from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from vcuda.errors import VcudaError
from vcuda.units import parse_size


class SettingsError(VcudaError):
    """A setting has a value that cannot be."""


def settings_error(error: ValidationError) -> SettingsError:
    """The first fault that was found in settings, in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "together"
    return SettingsError(f"settings: {where}: {first['msg'].removeprefix('Value error, ')}")


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except VcudaError as error:
        raise ValueError(str(error)) from error


Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
"""Bytes; written as 256MiB, or as a number."""
Domain = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""The prefix of resources, labels and annotations; all daemons of a cluster have the same."""
