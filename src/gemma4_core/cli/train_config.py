"""Where the options of ``gemma4 train`` come from besides the command line: a config file, or the run to resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from gemma4_core.cli.base import ManyOption
from gemma4_core.cli.options import clipped
from gemma4_core.cli.plugin_options import PluginOptionsCommand, PluginParam
from gemma4_core.config.files import read_bytes, shown_path
from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.plugins.origin import nearest

CONFIG_LIMIT = 1 << 20
RECORDED = "gemma4_core.train_config"
"""Where a command finds what was asked for (see ``recorded``)."""
NOT_IN_FILES = ("config", "help", "resume", "dry_run", "as_json")
RIVALS = {"steps": "epochs", "epochs": "steps"}
"""Options of which the one on the command line also replaces the other one in a file."""


class TrainCommand(PluginOptionsCommand):
    """A command whose options may also stand in a config file or in the folder of the run that goes on; what is typed
    wins, then the config file. Options that take media are left out: media stand in the data."""

    trains = True

    def plugin_params(self, ctx: click.Context) -> dict[str, PluginParam]:
        return {name: known for name, known in super().plugin_params(ctx).items() if known.media_keyword is None}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        typed, _, _ = self.make_parser(ctx).parse_args(args=self.spread_args(ctx, list(args)))
        if not ctx.resilient_parsing and not typed.get("help"):
            ctx.default_map = self.defaults(ctx, typed)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta[RECORDED] = recorded(ctx)  # values of plugins' options are taken out of the parameters below
        return super().invoke(ctx)

    def defaults(self, ctx: click.Context, typed: Mapping[str, Any]) -> dict[str, Any]:
        """Values from files by parameter name. Raises a Gemma4Error that names file and key."""
        values = from_file(self, ctx, Path(typed["config"])) if typed.get("config") else {}
        folder = typed.get("output_dir") or values.get("output_dir")
        if typed.get("resume") and folder:
            from gemma4_core.training.run_folder import RunFolder, read_settings

            recorded = read_settings(RunFolder(folder).settings)
            known = {param.name for param in self.get_params(ctx)}
            values = {name: value for name, value in recorded.items() if name in known} | values
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
            values[str(param.name)] = fitting(param, ctx, value, f"{where}: {key}")
    return values


def fitting(param: click.Parameter, ctx: click.Context, value: Any, where: str) -> Any:
    """A value that an option takes. Raises InputError."""
    several = isinstance(param, ManyOption) or param.multiple
    if isinstance(value, Mapping) or (isinstance(value, list) and not several):
        raise InputError(f"{where}: {clipped(json.dumps(value, default=str))} is not a single value")
    if several:
        value = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    try:
        param.process_value(ctx, value)
    except click.BadParameter as fault:
        raise InputError(f"{where}: {fault.message}") from fault
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The object in a TOML, YAML or JSON file. Raises InputError naming file and line."""
    where = shown_path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{where}: a config file ends in {', '.join(READERS)}")
    data = read_bytes(path, CONFIG_LIMIT, InputError)
    try:
        found = READERS[suffix](data.decode("utf-8-sig"))
    except Gemma4Error:
        raise
    except Exception as fault:
        raise InputError(f"{where}: not valid: {' '.join(str(fault).split())[:200]}") from fault
    if not isinstance(found, dict):
        raise InputError(f"{where}: must hold options such as 'lr: 1e-4', one a line")
    return found


def toml(text: str) -> Any:
    """TOML."""
    import tomllib

    return tomllib.loads(text)


def yaml(text: str) -> Any:
    """YAML. Raises InputError where its library is not installed."""
    try:
        from yaml import safe_load
    except ImportError as fault:
        raise InputError("YAML files need pyyaml (pip install pyyaml); TOML files need nothing") \
            from fault
    return safe_load(text) or {}


READERS: dict[str, Callable[[str], Any]] = {".toml": toml, ".yaml": yaml, ".yml": yaml, ".json": json.loads}


def recorded(ctx: click.Context) -> dict[str, Any]:
    """What was asked for, by parameter name, as a later ``--resume`` takes it; paths are made absolute."""
    default = click.core.ParameterSource.DEFAULT
    values: dict[str, Any] = {}
    for param in ctx.command.get_params(ctx):
        name = str(param.name)
        if name in NOT_IN_FILES or ctx.get_parameter_source(name) in (None, default):
            continue
        value = ctx.params.get(name)
        if name in ("data", "validation", "model") and os.path.exists(str(value)):
            value = os.path.abspath(str(value))
        values[name] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return values
