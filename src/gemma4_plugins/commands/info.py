"""Show a checkpoint's sizes, format and memory needs without loading it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import GemmaCommand, prefer_typed
from gemma4_core.cli.options import format_option, model_option
from gemma4_core.cli.output import json_text, write
from gemma4_core.cli.tables import fitted
from gemma4_core.errors import CheckpointError, Gemma4Error
from gemma4_core.formatting import human_bytes, human_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gemma4_core.config import GemmaConfig
    from gemma4_core.contracts import Context, TensorInfo
    from gemma4_core.ops import Operations

ITEM_SIZES = {"bfloat16": 2, "float32": 4}
"""Bytes of the type that a checkpoint computes in."""


def describe_text(config: GemmaConfig) -> dict[str, Any]:
    """Sizes of the decoder."""
    text = config.text_config
    full = sum(layer.is_full for layer in text.layers)
    found = {
        "layers": text.num_hidden_layers,
        "sliding_layers": text.num_hidden_layers - full,
        "full_layers": full,
        "sliding_window": text.sliding_window,
        "kv_shared_layers": text.num_kv_shared_layers,
        "hidden_size": text.hidden_size,
        "attention_heads": text.num_attention_heads,
        "vocabulary": text.vocab_size,
        "context": text.max_position_embeddings,
    }
    if text.enable_moe_block:
        found |= {"experts": text.num_experts, "experts_per_token": text.top_k_experts}
    return found


def describe_towers(config: GemmaConfig) -> list[dict[str, Any]]:
    """Towers that the config declares, and whether a plugin serves each."""
    from gemma4_core.plugins import registry

    served = registry.towers_of(config)
    towers = []
    for spec in served:
        part = spec.config(config) if spec.config is not None else None
        sizes = {"layers": getattr(part, "num_hidden_layers", None), "hidden_size": getattr(part, "hidden_size", None)}
        known = {key: size for key, size in sizes.items() if size is not None}
        towers.append({"name": spec.name, **known, "plugin": True})
    parts = {spec.part for spec in served}
    unserved = [key.removesuffix("_config") for key in config.media if key not in parts]
    return towers + [{"name": name, "plugin": False} for name in sorted(unserved)]


def describe_tokenizer(context: Context) -> dict[str, Any]:
    """Tokenizer, template and generation defaults of a folder. A problem is reported in the result, not raised."""
    from gemma4_core.config import load_generation_config
    from gemma4_core.plugins import registry
    from gemma4_core.text import ChatTemplate

    assert context.config is not None
    found: dict[str, Any] = {"tokenizer": None, "chat_template": None}
    try:
        found["tokenizer"] = registry.select("tokenizer", context).name
        template = ChatTemplate.load(context)
        found["chat_template"] = template.path.name if template is not None else None
    except Gemma4Error as error:
        found["tokenizer_problem"] = str(error)
    generation = load_generation_config(context, context.config)
    names = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    found["generation"] = {name: getattr(generation, name) for name in names}
    found["generation"]["stop_ids"] = list(generation.eos_token_ids)
    return found


def describe_files(context: Context, format: str) -> tuple[dict[str, Any], Mapping[str, TensorInfo]]:
    """Format and files of a folder, with its tensors. Raises a Gemma4Error where they cannot be read."""
    from gemma4_core.checkpoint.contents import weight_files
    from gemma4_core.checkpoint.opening import open_checkpoint
    from gemma4_core.plugins.options import plugin_name
    from gemma4_core.processing.modalities import select_modalities

    problem = None
    with open_checkpoint(context, plugin_name(format)) as checkpoint:
        chosen, infos = checkpoint.format, dict(checkpoint.infos)
        try:
            checkpoint.check(select_modalities(checkpoint.towers, context, None), copies=False)
        except CheckpointError as error:
            problem = str(error)
    stored = dict(Counter(info.dtype for info in infos.values()).most_common())
    files = weight_files(context)
    size = sum(path.stat().st_size for path in files)
    about = {"format": chosen.name, "files": len(files), "file_bytes": size, "tensors": len(infos),
             "stored_dtypes": stored, "problem": problem}
    return about, infos


def preset_infos(config: GemmaConfig) -> dict[str, TensorInfo]:
    """The tensors of an official size as bf16."""
    import math

    from gemma4_core.contracts import TensorInfo
    from gemma4_core.plugins import registry

    shapes = registry.expected_tensors(config)
    return {name: TensorInfo("BF16", shape, 2 * math.prod(shape)) for name, shape in shapes.items()}


def device_operations() -> Operations:
    """What ``--device auto`` computes with, the portable operations where no device can be used."""
    from gemma4_core.ops import portable
    from gemma4_core.plugins import registry

    try:
        backend = registry.select_device()
    except Gemma4Error:
        return portable()
    return backend.operations() if backend.operations is not None else portable()


def gather(model: str | None, size: str | None, format: str) -> dict[str, Any]:
    """Everything about a checkpoint folder, or about an official size. Raises a Gemma4Error."""
    from gemma4_core.checkpoint.context import read_context
    from gemma4_core.checkpoint.hub import resolve_folder
    from gemma4_core.checkpoint.opening import run_dtype
    from gemma4_core.config import preset_config, preset_dict, preset_of
    from gemma4_core.contracts import Context
    from gemma4_core.plugins import registry
    from gemma4_plugins.commands import memory_sizes as sizes

    if model is not None:
        context = read_context(resolve_folder(model), format)
        files, infos = describe_files(context, format)
    else:
        assert size is not None
        context = Context(None, preset_config(size), preset_dict(size))
        assert context.config is not None
        files, infos = {"format": None}, preset_infos(context.config)
    config = context.config
    assert config is not None
    dtype = run_dtype(config, infos)
    parts = sizes.parts(config, infos, ITEM_SIZES[dtype])
    weights = sizes.used_bytes(parts)
    folder = str(context.path) if context.path else None
    about: dict[str, Any] = {"folder": folder, "model_type": config.model_type}
    about |= {"size": preset_of(config), "dtype": dtype, **files}
    about |= {"text": describe_text(config), "towers": describe_towers(config)}
    about |= describe_tokenizer(context) if context.path else {}
    about["parts"] = [{"name": p.name, "parameters": p.parameters, "bytes": p.nbytes} for p in parts]
    about["parameters"] = sum(p.parameters for p in parts if p.name != sizes.UNUSED)
    about["active_parameters"] = sizes.active_parameters(config, parts)
    about["weight_bytes"] = weights
    both_ways = config.vision_bidirectional and any(tower.bidirectional for tower in registry.towers_of(config))
    need = sizes.needs(config, weights, device_operations(), both_ways, ITEM_SIZES[dtype])
    about["memory"] = [{"context": n.context, "cache_bytes": n.cache, "total_bytes": n.total} for n in need]
    return about


def report_lines(about: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    from gemma4_core.checkpoint.hub import shown_name

    text, folder = about["text"], about["folder"]
    name = shown_name(Path(folder)) if folder else "official size"
    shape = f", {about['size']} shape" if about["size"] else ""
    shown = [f"{name}: {about['model_type']}{shape}, computes in {about['dtype']}"]
    if folder and name != folder:
        shown.append(f"folder      {folder}")
    if about["format"]:
        fit = f"but {about['problem']}" if about["problem"] else "as the config says"
        files = f"{about['files']} file{'s' if about['files'] != 1 else ''} of {human_bytes(about['file_bytes'])}"
        types = ", ".join(f"{count} {dtype}" for dtype, count in about["stored_dtypes"].items())
        shown.append(f"format      {about['format']}, {files}, {about['tensors']} tensors ({types}), {fit}")
    layers = f"{text['layers']} layers ({text['sliding_layers']} sliding over {text['sliding_window']}, "
    layers += f"{text['full_layers']} full; {text['kv_shared_layers']} share K/V)"
    shown.append(f"text        {layers}, hidden {text['hidden_size']}, vocabulary {text['vocabulary']}, "
                 f"context {text['context']}")
    if "experts" in text:
        shown.append(f"experts     {text['experts']}, {text['experts_per_token']} per token")
    towers = [tower["name"] + ("" if tower["plugin"] else " (no plugin)") for tower in about["towers"]]
    shown.append(f"towers      {', '.join(towers) or 'none'}")
    if "generation" in about:
        shown += tokenizer_lines(about)
    return [*shown, "", *part_lines(about), "", *memory_lines(about)]


def tokenizer_lines(about: dict[str, Any]) -> list[str]:
    """Tokenizer, template, stop ids and sampling."""
    found = about["generation"]
    template = about["chat_template"] or "no chat template"
    what = about.get("tokenizer_problem") or f"{about['tokenizer']}, {template}"
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    how = ", ".join(f"{name} {found[name]:g}" for name in names if found[name] is not None)
    stops = ", ".join(map(str, found["stop_ids"]))
    return [f"tokenizer   {what}; stop ids {stops}", f"sampling    {how if found['do_sample'] else 'greedy'}"]


def part_lines(about: dict[str, Any]) -> list[str]:
    """Parameters and bytes by part."""
    shown = [f"{'part':<21}{'parameters':>12}{'size':>11}"]
    for part in about["parts"]:
        shown.append(f"{part['name']:<21}{human_count(part['parameters']):>12}{human_bytes(part['bytes']):>11}")
    total = f"{'total':<21}{human_count(about['parameters']):>12}{human_bytes(about['weight_bytes']):>11}"
    experts = "experts" in about["text"]
    active = f"   ({human_count(about['active_parameters'])} active for a token of text)" if experts else ""
    return [*shown, total + active]


def memory_lines(about: dict[str, Any]) -> list[str]:
    """Memory by context length."""
    shown = [f"{'context':<21}{'cache':>12}{'memory':>11}"]
    for need in about["memory"]:
        cache, total = human_bytes(need["cache_bytes"]), human_bytes(need["total_bytes"])
        shown.append(f"{need['context']:<21}{cache:>12}{total:>11}")
    return shown


@click.command("info", cls=GemmaCommand)
@model_option(required=False, help="Checkpoint folder, hub name or alias.")
@click.option("--size", metavar="SIZE", help="An official size instead: E2B, E4B, 26B-A4B, 31B.")
@format_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def info_command(ctx: click.Context, model: str | None, size: str | None, format: str, as_json: bool) -> None:
    """Show sizes, parameters, format, towers, tokenizer, and the memory that each context length needs.

    \b
    gemma4 info -m ./checkpoint
    gemma4 info --size 31B

    Only headers are read. Memory is weights plus cache; a run takes a few hundred MB more. --modality text leaves out
    the towers, --ple disk the per-layer embedding.
    """
    named = {"model": model, "size": size}
    prefer_typed(ctx, named, "model", "size")
    model, size = named["model"], named["size"]
    if (model is None) == (size is None):
        which = "neither was given" if model is None else "both were given"
        raise click.UsageError(f"Give exactly one of --model-dir and --size: {which}.")
    about = gather(model, size, format)
    write((json_text(about, indent=2) if as_json else "\n".join(fitted(report_lines(about)))) + "\n")
