"""Where the options of ``gemma4 train`` come from besides the command line: a config file, or the run to resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gemma4_core.cli.base import ManyOption
from gemma4_core.cli.options import FilePath, Number, Whole, clipped
from gemma4_core.cli.plugin_options import PluginOptionsCommand, PluginParam
from gemma4_core.errors import InputError
from gemma4_core.formatting import shown_path
from gemma4_core.plugins.origin import nearest
from gemma4_plugins.commands.train.config_files import read_config

RECORDED = "gemma4_core.train_config"
"""Where a command finds the options that were given (see ``recorded``)."""
NOT_IN_FILES = ("config", "help", "resume", "dry_run", "as_json", "quiet")
TABLES = ("column", "optimizer_option")
"""Options of pairs, which a file may also write as a table."""
RIVALS = {"steps": "epochs", "epochs": "steps"}
"""Pairs of options that exclude each other: one on the command line also replaces the other one in a file."""


class TrainCommand(PluginOptionsCommand):
    """A command whose options also come from a config file, or from the folder of a run that is resumed.

    The command line wins, then the config file. Options that take media are left out: the data names the media."""

    trains = True

    def plugin_params(self, ctx: click.Context) -> dict[str, PluginParam]:
        return {name: known for name, known in super().plugin_params(ctx).items() if known.media_keyword is None}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options. Those that a file or the resumed run gives are not read from the environment."""
        params = super().get_params(ctx)
        for param in params:
            if param.name in (ctx.default_map or {}):
                param.envvar = ()
        return params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        typed, _, _ = self.make_parser(ctx).parse_args(args=self.spread_args(ctx, list(args)))
        if not ctx.resilient_parsing and not typed.get("help"):
            ctx.default_map = self.defaults(ctx, typed)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta[RECORDED] = recorded(ctx)  # plugins' options are removed from the parameters below
        return super().invoke(ctx)

    def defaults(self, ctx: click.Context, typed: Mapping[str, Any]) -> dict[str, Any]:
        """Values from files by parameter name. Raises a Gemma4Error that names file and key."""
        values = from_file(self, ctx, Path(typed["config"])) if typed.get("config") else {}
        [output] = [param for param in self.get_params(ctx) if param.name == "output_dir"]
        folder = typed.get("output_dir") or values.get("output_dir") or output.resolve_envvar_value(ctx)
        if typed.get("resume") and folder:
            from gemma4_core.training.run_folder import RunFolder, read_settings

            path = RunFolder(folder).settings
            values = from_run(self, ctx, read_settings(path), shown_path(path)) | values
        for name, other in RIVALS.items():
            if typed.get(name) is not None and typed.get(other) is None:
                values.pop(other, None)
        return values


def from_file(command: click.Command, ctx: click.Context, path: Path) -> dict[str, Any]:
    """The options in a config file by parameter name. Raises InputError that names the file and the key."""
    where = shown_path(path)
    params = {
        flag.lstrip("-").replace("-", "_"): param
        for param in command.get_params(ctx) if param.name not in NOT_IN_FILES
        for flag in (*param.opts, str(param.name))
    }
    values: dict[str, Any] = {}
    for key, value in read_config(path).items():
        name = str(key).replace("-", "_")
        if name not in params:
            known = [flag.replace("_", "-") for flag in params if not flag.startswith("plugin_")]
            raise InputError(f"{where}: unknown key {clipped(key)}{nearest(str(key), known)}; keys are the options of "
                             f"gemma4 train without their dashes")
        if value is not None:
            param = params[name]
            given = pairs(value, f"{where}: {key}") if param.name in TABLES and isinstance(value, dict) else value
            values[str(param.name)] = fitting(param, ctx, given, f"{where}: {key}")
    return values


def pairs(table: Mapping[str, Any], where: str) -> list[str]:
    """A table of names and values, as the command line gives them: ``name=value``. Raises InputError."""
    for name, value in table.items():
        if not isinstance(value, str | bool | int | float) or misfit_text(name):
            raise InputError(f"{where}: {plain(name)}: {plain(value)} is not a single value")
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in table.items()]


def from_run(command: click.Command, ctx: click.Context, found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options that a run was started with by parameter name. Raises InputError that names the file and the key."""
    params = {str(param.name): param for param in command.get_params(ctx) if param.name not in NOT_IN_FILES}
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name not in params:
            option = "--" + name.removeprefix("plugin_").replace("_", "-")
            raise InputError(f"{where}: the run was started with {clipped(option)}, which is not an option now; its "
                             f"plugin may be missing or blocked (gemma4 plugins says)")
        if value is not None:
            values[name] = fitting(params[name], ctx, value, f"{where}: {name}")
    return values


def fitting(param: click.Parameter, ctx: click.Context, value: Any, where: str) -> Any:
    """A value from a file, converted as the option does it. Raises InputError."""
    several = isinstance(param, ManyOption) or param.multiple
    items = value if isinstance(value, list) and several else [value]
    for item in items:
        if not isinstance(item, str | bool | int | float):
            raise InputError(f"{where}: {plain(item)} is not a single value")
        if fault := misfit(param, item):
            raise InputError(f"{where}: {plain(item)} {fault}")
    try:
        param.process_value(ctx, items if several else value)
    except click.BadParameter as fault:
        raise InputError(f"{where}: {fault.message}") from fault
    except (TypeError, ValueError, OverflowError) as fault:
        raise InputError(f"{where}: {plain(value)} does not fit: {' '.join(str(fault).split())[:200]}") from fault
    return items if several else value


def misfit(param: click.Parameter, value: str | bool | int | float) -> str | None:
    """What is wrong with the type of a value from a file; None where the option itself checks it."""
    flag = isinstance(param, click.Option) and param.is_flag
    number = isinstance(param.type, Whole | Number)
    if flag and not isinstance(value, bool) and value not in ("true", "false"):
        return "is neither true nor false"
    if isinstance(value, bool) and not flag:
        return "is not a number" if number else "is true or false, which only switches take"
    if isinstance(value, int) and value.bit_length() > 64:
        return "is out of range"
    if isinstance(value, int | float) and isinstance(param.type, FilePath | click.types.StringParamType):
        return "is a number: a path or text is expected, in quotes"
    return misfit_text(value)


def misfit_text(value: Any) -> str | None:
    """What is wrong with a text from a file; None where nothing is, and for what is no text."""
    if isinstance(value, str):
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return "is not UTF-8 text"
        if "\0" in value:
            return "has a NUL character in it"
    return None


def plain(value: Any) -> str:
    """A value of any type and size as a message shows it."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return clipped(value if isinstance(value, str) else json.dumps(value, default=str))


def names_split(ctx: click.Context, value: Path) -> bool:
    """Whether ``--validation`` names a split of the folder of ``--data``; such a name is no path."""
    from gemma4_core.training.data.dataset_folders import held_out_source

    data = ctx.params.get("data")
    try:
        return isinstance(data, Path) and held_out_source(data, ctx.params.get("split"), value)[1] is not None
    except InputError:  # the run will say so
        return True


def recorded(ctx: click.Context) -> dict[str, Any]:
    """The options that were given, by parameter name, for a later ``--resume``; paths are absolute."""
    default = click.core.ParameterSource.DEFAULT
    values: dict[str, Any] = {}
    for param in ctx.command.get_params(ctx):
        name = str(param.name)
        if name in NOT_IN_FILES or ctx.get_parameter_source(name) in (None, default):
            continue
        value = ctx.params.get(name)
        if name == "validation" and isinstance(value, Path) and names_split(ctx, value):
            values[name] = str(value)
            continue
        if name in ("data", "validation", "model") and os.path.exists(str(value)):
            value = os.path.abspath(str(value))
        values[name] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return values
