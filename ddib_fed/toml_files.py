"""Loads a TOML file into a checked pydantic model; an error names the key and suggests a correction."""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ValidationError

from ddib_fed.errors import ConfigError, FileMissing
from ddib_fed.names import is_institution

M = TypeVar("M", bound=BaseModel)


def checked(check: Callable[[str], object]) -> AfterValidator:
    """For a field of which a function raises ValueError when it is wrong."""

    def value_of(value: str) -> str:
        check(value)
        return value

    return AfterValidator(value_of)


def _institution(value: str) -> None:
    if not is_institution(value):
        raise ValueError(f"{value!a} is no institution: a DNS name in lower case, e.g. north.example")


Institution = Annotated[str, checked(_institution)]
MAX_CONFIG_BYTES = 1 << 20


def load_toml(path: Path, model: type[M], *, hint: str) -> M:
    """Read and validate `path`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise FileMissing(f"there is no {path}", hint=hint) from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint=f"ls -ld {shlex.quote(str(path))}"
        ) from error
    return parse_toml(data, model, path)


def parse_toml(data: bytes, model: type[M], path: Path) -> M:
    """As `load_toml`, of the content of a file."""
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path} is over {MAX_CONFIG_BYTES} bytes: it is no configuration",
            hint=f"ls -l {shlex.quote(str(path))}",
        )
    try:
        values = tomllib.loads(data.decode("utf-8-sig"))  # some editors put a BOM first
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}", hint="save it as UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply", hint=f"correct {path}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}", hint=f"correct that line of {path}"
        ) from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ConfigError(f"{path} cannot be used:\n  " + "\n  ".join(lines), hint=f"edit {path}") from error


def _explain(model: type[BaseModel], item: Any) -> str:
    """One line for one pydantic error, with a suggestion where a key is misspelt."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _keys_at(model, item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known) or 'none'}"
        return f"{where}: unknown key; {meant}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {message} (got {item.get('input')!r})" if where else message


def _keys_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    current: type[BaseModel] | None = model
    for part in location:
        field = current.model_fields.get(str(part)) if current else None
        current = _model_in(field.annotation) if field else None
    return sorted(current.model_fields) if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next((m for arg in get_args(annotation) if (m := _model_in(arg))), None)
    return None
