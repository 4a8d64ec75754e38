"""`--config FILE`: a command's options from a TOML file with a table for each command."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, nearest, read_text

COMMANDS = ("gateway", "serve")  # that have the option, and so may have a table
_LEFT_OUT = ("config", "as_json", "help")


def _take(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """The callback of `config_option`: what the file has stands in for the defaults."""
    if path is None:
        return
    table = _table(path, str(context.command.name))
    known = {
        _key(parameter): parameter
        for parameter in context.command.params
        if parameter.name not in _LEFT_OUT
    }
    defaults = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{path}: unknown option {key!r}{nearest(key, known)}")
        parameter = known[key]
        assert parameter.name is not None
        defaults[parameter.name] = _checked(context, parameter, value, f"{path}: {key}")
    context.default_map = defaults


def _table(path: Path, command: str) -> Mapping[str, Any]:
    """The command's table; empty if the file has none."""
    try:
        tables = tomllib.loads(read_text(path, SMALL))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} can't be read: it is nested too deeply, or has a number of thousands of digits"
        ) from None
    for name, value in tables.items():
        if name not in COMMANDS or not isinstance(value, dict):
            raise InputError(
                f"{path}: {name!r} is not one of the tables it may have: "
                f"{', '.join(f'[{known}]' for known in COMMANDS)}"
            )
    found: Mapping[str, Any] = tables.get(command, {})
    return found


def _key(parameter: click.Parameter) -> str:
    """What an option is called in the file: as on the command line, without its dashes."""
    return parameter.opts[-1].lstrip("-")


def _checked(context: click.Context, parameter: click.Parameter, value: Any, where: str) -> Any:
    """The value, if the option takes it; raises InputError that begins with `where`."""
    is_many = parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs != 1
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if is_flag != isinstance(value, bool):
        raise InputError(
            f"{where} is {value!r}; expected {'true or false' if is_flag else parameter.type.name}"
        )
    if is_many != isinstance(value, list):
        raise InputError(f"{where} is {value!r}; expected {'a list' if is_many else 'one value'}")
    try:
        parameter.type_cast_value(context, value)
    except click.BadParameter as error:
        raise InputError(f"{where}: {error.message}") from None
    return value


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_take,
    help="TOML file with a table [gateway] or [serve] of these options without their dashes; the "
    "command line and the environment take precedence.",
)
