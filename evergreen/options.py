"""Dataclasses as command lines: one field is one flag, one key of a YAML recipe and one argument in Python.

Promises: an unknown flag is an error naming the nearest one; abbreviations are never guessed; `--learning-rate` and
`--learning_rate` are the same; `--stream`, `--stream true` and `--stream false` all work; flags overlay `--config`.
Imports nothing heavy, so that `--help` and a wrong flag answer at once.
"""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from evergreen.records import BadInput

T = TypeVar("T")
TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


def option(
    default: Any = None,
    help: str = "",
    aliases: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field with what its flag needs to know: help text, other frameworks' names for it, and the allowed values."""
    metadata = {
        "help": help,
        "aliases": aliases,
        "choices": choices,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(settings: type[T], arguments: list[str], command: str) -> T:
    """`arguments` (without the command's name) as a settings object. Raises BadInput in one line."""
    parser = _Parser(
        prog=f"evergreen {command}",
        usage=f"evergreen {command} [--flag value ...]",
        description=(settings.__doc__ or "").strip(),
        add_help=True,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    for field in _flags(settings):
        _add_flag(parser, field)
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML or JSON recipe of these flags; flags given here overlay it"
    )
    if arguments and arguments[0].endswith((".yaml", ".yml")):  # LLaMA-Factory's positional recipe
        arguments = ["--config", *arguments]
    given, unknown = parser.parse_known_args([_with_underscores(argument) for argument in arguments])
    if unknown:
        raise BadInput(_unknown(unknown[0], settings, command))
    values = vars(given)
    recipe = _read_recipe(values.pop("config"), settings, command) if "config" in values else {}
    return build(settings, {**recipe, **values})


def build(settings: type[T], values: dict[str, Any]) -> T:
    """A settings object from already typed values; every complaint about ranges and choices in one BadInput. A class
    with a field `asked` is told there which were given: a default that was typed is not one that was left alone."""
    problems = [
        problem
        for field in _flags(settings)
        if field.name in values
        for problem in _problems(field, values[field.name])
    ]
    if problems:
        raise BadInput("; ".join(problems))
    if "asked" in settings.__dataclass_fields__:
        values = {"asked": sorted(values)} | values
    return settings(**values)


def flags_of(settings: type) -> list[str]:
    """Every flag the command knows, with aliases, as typed."""
    return [f"--{name}" for field in _flags(settings) for name in (field.name, *field.metadata["aliases"])]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}")


def _flags(settings: type) -> list[dataclasses.Field]:
    hints = typing.get_type_hints(settings)
    fields = [field for field in dataclasses.fields(settings) if "aliases" in field.metadata]
    for field in fields:
        field.type = hints[field.name]
    return fields


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
    kind, is_list = _kind(field.type)
    how: dict[str, Any] = {"type": lambda text: _convert(text, kind, names[0]), "metavar": kind.__name__.upper()}
    if kind is bool:
        how |= {"nargs": "?", "const": True, "metavar": "true|false"}
    if is_list:
        how |= {"nargs": "+"}
    if field.metadata["choices"]:
        how["metavar"] = "|".join(field.metadata["choices"])
    parser.add_argument(*names, dest=field.name, help=_help(field), **how)


def _help(field: dataclasses.Field) -> str:
    default = field.default if field.default is not dataclasses.MISSING else None
    text = field.metadata["help"] + (f" (default {default})" if default not in (None, "", False) else "")
    return text.replace("%", "%%")


def _kind(hint: Any) -> tuple[type, bool]:
    """The scalar type behind a hint, and whether the field is a list of it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _convert(value: Any, kind: type, flag: str) -> Any:
    try:
        if kind is bool and not isinstance(value, bool):
            word = str(value).lower()
            if word not in TRUE | FALSE:
                raise ValueError
            return word in TRUE
        if kind is str and isinstance(value, bool):  # a recipe's bare true, false, yes and no
            return str(value).lower()
        is_odd = isinstance(value, (list, dict, bool) if kind in (int, float) else (list, dict))
        if is_odd or (kind is int and isinstance(value, float) and value != int(value)):
            raise ValueError
        converted = kind(value)
        if kind is float and not math.isfinite(converted):
            raise ValueError
        return converted
    except (TypeError, ValueError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
        raise BadInput(f"{flag} wants {wanted}, got {value!r}") from None


def _problems(field: dataclasses.Field, value: Any) -> list[str]:
    flag, rules = f"--{field.name}", field.metadata
    if value is None:
        return []
    if rules["choices"] and value not in rules["choices"]:
        return [f"{flag} wants one of {', '.join(rules['choices'])}; got {value!r}"]
    found = []
    for number in value if isinstance(value, list) else [value]:
        if rules["at_least"] is not None and number < rules["at_least"]:
            found.append(f"{flag} must be at least {rules['at_least']}, got {number}")
        if rules["above"] is not None and number <= rules["above"]:
            found.append(f"{flag} must be above {rules['above']}, got {number}")
        if rules["at_most"] is not None and number > rules["at_most"]:
            found.append(f"{flag} must be at most {rules['at_most']}, got {number}")
    return found


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _unknown(argument: str, settings: type, command: str) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"evergreen {command} takes flags only, got {argument!r} (evergreen {command} --help lists them)"
    names = [flag.removeprefix("--") for flag in flags_of(settings)]  # dashes would make all alike
    near = difflib.get_close_matches(name.lstrip("-"), names, n=1, cutoff=0.5)
    hint = f"; the nearest is --{near[0]}" if near else ""
    return f"evergreen {command} knows no flag {name}{hint} (evergreen {command} --help lists all)"


def _read_recipe(path: str, settings: type, command: str) -> dict[str, Any]:
    """A recipe's values by field name, typed as the flags would type them."""
    import yaml

    if not Path(path).is_file():
        raise BadInput(f"--config {path}: {'a folder, not a recipe' if Path(path).is_dir() else 'no such file'}")
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise BadInput(f"--config {path} wants `flag: value` lines, got a {type(recipe).__name__}")
    fields = {name: field for field in _flags(settings) for name in (field.name, *field.metadata["aliases"])}
    values = {}
    for key, value in recipe.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise BadInput(f"{path}: " + _unknown(f"--{name}", settings, command))
        if value is not None:
            values[fields[name].name] = _typed_in(path, value, fields[name])
    return values


def _typed_in(path: str, value: Any, field: dataclasses.Field) -> Any:
    try:
        return _typed(value, field)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def _typed(value: Any, field: dataclasses.Field) -> Any:
    kind, is_list = _kind(field.type)
    if value is False and "no" in field.metadata["choices"]:  # YAML reads a bare `no` as false
        value = "no"
    if is_list:
        parts = value if isinstance(value, list) else str(value).split(",")
        return [_convert(part.strip() if isinstance(part, str) else part, kind, f"--{field.name}") for part in parts]
    return _convert(value, kind, f"--{field.name}")
