"""What ``gemma4 bench`` and ``gemma4 bench ops`` share: options, loading, the common part of reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.options import apply, device_options, format_option, model_option
from gemma4_core.cli.output import json_text, note, on_terminal, write
from gemma4_core.cli.plugin_options import PluginValues
from gemma4_core.cli.tables import comma_separated
from gemma4_plugins.commands.model_loading import Loading

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel

OUTPUTS = ("md", "csv", "json")


def bench_options(function: Any) -> Any:
    """Options of both commands."""
    return apply(function, [
        model_option(required=False, help="Checkpoint folder, hub name or alias."),
        device_options,
        format_option(),
        click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True,
                     help="Type to compute in; auto is the files'."),
        click.option("--ple", type=click.Choice(["auto", "device", "host", "disk"]), default="auto", show_default=True,
                     help="Where the per-layer embedding table stays."),
        click.option("--output", "-o", type=click.Choice(OUTPUTS), default="md", show_default=True,
                     help="How to print the report."),
        click.option("--json", "as_json", is_flag=True, help="The same as --output json."),
    ])


def load(values: dict[str, Any], positions: int = 1) -> LoadedModel:
    """Load the text model that the options name.

    Raises UsageError where none is named, and a Gemma4Error before weights are read where its context is too short.
    """
    if values["model"] is None:
        raise click.UsageError("Missing option '--model-dir' / '--model' / '-m'.")
    from gemma4_core.checkpoint.context import read_context
    from gemma4_core.checkpoint.hub import resolve_folder
    from gemma4_core.errors import InputError

    context = read_context(resolve_folder(values["model"]))
    assert context.config is not None
    longest = context.config.text_config.max_position_embeddings
    if positions > longest:
        raise InputError(f"the longest test needs a context of {positions}, {values['model']} has {longest}: "
                         "give a smaller --depth, --prompt-tokens or --new-tokens")
    if on_terminal():
        note(f"loading {values['model']}")
    return Loading.from_options({**values, "modality": ("text",)}).load(PluginValues())


def about(model: LoadedModel) -> dict[str, Any]:
    """The common part of reports: model, device and settings. Measures the device's read rate."""
    from gemma4_core.plugins import registry
    from gemma4_plugins.commands.bench.bandwidth import read_bandwidth

    backend = registry.devices[model.device_name]
    return {
        "model": str(model.context.path),
        "format": model.format_name,
        "dtype": "float32" if model.dtype.itemsize == 4 else "bfloat16",
        "parameters": sum(math.prod(place.matrix.shape) for place in model.places.values()),
        "weight_bytes": sum(int(tensor.nbytes()) for tensor in model.named_tensors().values()),
        "device": model.device_name,
        "device_details": dict(backend.details()) if backend.details is not None else {},
        "kernels": model.operations.name,
        "read_bytes_per_second": read_bandwidth(backend),
    }


def print_report(
    values: dict[str, Any],
    report: dict[str, Any],
    table: Callable[[dict[str, Any]], str],
    flat: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    """Print a report in the form that the options name; a table is followed by a line about the device."""
    output = "json" if values["as_json"] else values["output"]
    if output == "json":
        write(json_text(report, indent=2) + "\n")
    elif output == "csv":
        write(comma_separated(flat(report)))
    else:
        write(f"{table(report)}\n{machine_line(report)}\n")


def same_for_all(report: Mapping[str, Any]) -> dict[str, Any]:
    """The single values of a report, for every row of a CSV."""
    return {name: value for name, value in report.items() if not isinstance(value, dict | list) and name != "score"}


def machine_line(report: Mapping[str, Any]) -> str:
    """The device and its read rate on one line."""
    read = report["read_bytes_per_second"]
    device = "".join(f", {name} {text}" for name, text in report["device_details"].items())
    return f"{report['device']} reads {f'{read / 1e9:.1f} GB/s' if read else 'at an unknown rate'}{device}"
