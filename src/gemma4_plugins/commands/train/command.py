"""Fine-tune a model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from gemma4_core.cli import completion
from gemma4_core.cli.base import ManyOption
from gemma4_core.cli.options import (
    FilePath,
    Number,
    Whole,
    apply,
    clipped,
    device_options,
    loading_options,
    long_running,
    model_option,
)
from gemma4_core.cli.plugin_options import PluginValues
from gemma4_plugins.commands.train.config import RECORDED, TrainCommand


class Validation(click.ParamType):
    """A share of the data, the name of a split, or a file."""

    name = "file or share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | float:
        try:
            share = float(value)
        except (TypeError, ValueError):
            return FilePath().convert(value, param, ctx)
        if isinstance(value, bool) or not (math.isfinite(share) and 0 < share < 1):
            self.fail(f"{clipped(value)}: give a file, or a share above 0 and below 1.", param, ctx)
        return share


SETTINGS = [
    click.option("--data", type=FilePath(), required=True, metavar="FILE|FOLDER",
                 help="JSON Lines, Parquet, Arrow or a dataset folder: rows of messages, of prompt and completion, or "
                 "of text."),
    click.option("--split", default=None, metavar="NAME",
                 help="The split of a dataset folder to train on.  [default: train]"),
    click.option("--column", multiple=True, metavar="KEY=NAME",
                 help="The column that stands for a key, such as messages=chat; may be given more than once."),
    click.option("--validation", type=Validation(), default=None, metavar="FILE|SPLIT|SHARE",
                 help="Examples for the validation loss: a file like --data, a split of its folder, or a share of it "
                 "such as 0.1."),
    click.option("--output-dir", "-o", type=FilePath(), default=None, metavar="FOLDER",
                 help="Where checkpoints and the log go."),
    click.option("--config", type=FilePath(), allow_from_autoenv=False, default=None, metavar="FILE",
                 help="TOML, YAML or JSON file with these options; those typed here win."),
    click.option("--resume", is_flag=True, allow_from_autoenv=False,
                 help="Continue from the newest checkpoint in --output-dir; other options are those of that run."),
    click.option("--dry-run", is_flag=True, allow_from_autoenv=False,
                 help="Check everything and show what would be learnt, between » and «; write nothing."),
]
STEPS = [
    click.option("--optimizer", default="adamw", show_default=True, metavar="NAME", help="Optimizer plugin.",
                 shell_complete=completion.plugins("optimizers")),
    click.option("--optimizer-option", multiple=True, metavar="NAME=VALUE",
                 help="An option of the optimizer, such as momentum=0.9; may be given more than once."),
    click.option("--lr", type=Number(0), default=1e-5, show_default=True, help="Learning rate."),
    click.option("--weight-decay", type=Number(0), default=0.0, show_default=True, help="Weight decay of matrices."),
    click.option("--schedule", type=click.Choice(["constant", "linear", "cosine"]), default="constant",
                 show_default=True, help="The learning rate after the warm-up: constant, or falling to 0 or a tenth."),
    click.option("--warmup", type=Whole(0), default=0, show_default=True, metavar="STEPS",
                 help="Steps in which the learning rate grows to --lr."),
    click.option("--epochs", type=Whole(), default=None, help="Passes over the examples.  [default: 1]"),
    click.option("--steps", type=Whole(), default=None, help="Optimizer steps, in place of --epochs."),
    click.option("--batch-size", type=Whole(1, 1 << 16), default=1, show_default=True, help="Rows of a batch."),
    click.option("--accumulate", type=Whole(1, 1 << 16), default=1, show_default=True, metavar="BATCHES",
                 help="Batches whose gradients are added up for one step."),
    click.option("--clip", type=Number(0), default=1.0, show_default=True,
                 help="Limit of the global gradient norm; 0 is off."),
    click.option("--trainable", cls=ManyOption, metavar="PATTERN…",
                 help="Names of tensors that train, such as '*.mlp.*'. Default: all of the model or of its adapter."),
    click.option("--frozen", cls=ManyOption, metavar="PATTERN…", help="Names of tensors that do not train."),
    click.option("--gradient-checkpointing", is_flag=True,
                 help="Gradient checkpointing: less memory, more time; layers are computed twice."),
    click.option("--max-memory", type=Number(0, above=True), default=None, metavar="GB",
                 help="Device memory that training may use; with more, fewer layers are computed twice.  "
                      "[default: what weights and optimizer take, and about as much as the weights again]"),
    click.option("--seed", type=Whole(0, (1 << 32) - 1), default=0, show_default=True,
                 help="Seed of the order and the split."),
]
EXAMPLES = [
    click.option("--max-length", type=Whole(2), default=None, metavar="TOKENS",
                 help="Tokens of the longest example.  [default: 2048, or the model's context]"),
    click.option("--overlong", type=click.Choice(["truncate", "drop"]), default="truncate", show_default=True,
                 help="What to do with longer examples; those with media are always dropped."),
    click.option("--pack", is_flag=True, help="Pack several examples into a row; they do not attend to each other."),
    click.option("--mask-prompt/--no-mask-prompt", default=True, show_default=True,
                 help="Compute the loss on the assistant's turns alone."),
    click.option("--raw", is_flag=True, help="Do not apply the chat template to prompt and completion."),
    click.option("--thinking/--no-thinking", default=False, help="Render the template with thinking on."),
    click.option("--allow-urls", is_flag=True, help="Fetch media given as URLs."),
]
ON_THE_WAY = [
    click.option("--save-every", type=Whole(0), default=0, show_default=True, metavar="STEPS",
                 help="Steps between checkpoints; 0 writes one at the end alone."),
    click.option("--keep-last", type=Whole(), default=2, show_default=True, metavar="N",
                 help="How many of the newest checkpoints are kept."),
    click.option("--eval-every", type=Whole(0), default=0, show_default=True, metavar="STEPS",
                 help="Steps between measurements of the validation loss; 0 measures at the end alone."),
    click.option("--early-stop", type=Whole(0), default=0, show_default=True, metavar="N",
                 help="End the run after N evaluations in a row without a lower validation loss; 0 is never."),
    click.option("--min-delta", type=Number(0), default=0.0, show_default=True, metavar="LOSS",
                 help="How much lower it must be to count for --early-stop."),
    click.option("--keep-best/--no-keep-best", default=True, show_default=True,
                 help="Save and keep the checkpoint of the lowest validation loss, besides --keep-last."),
    click.option("--plot", is_flag=True, help="Draw the loss curve, loss.png, again and again during the run."),
    click.option("--callback", multiple=True, metavar="NAME", shell_complete=completion.plugins("callbacks"),
                 help="Callback plugin, such as a writer of logs; may be given more than once."),
    click.option("--sample-every", type=Whole(0), default=0, show_default=True, metavar="STEPS",
                 help="Steps between answers to each --sample-prompt; 0 answers at the end alone."),
    click.option("--sample-prompt", multiple=True, metavar="TEXT",
                 help="Prompt to answer during the run; may be given more than once."),
    click.option("--sample-tokens", type=Whole(), default=64, show_default=True,
                 help="Tokens of the longest such answer."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the run at its end."),
]


def train_options(function: Any) -> Any:
    """All options but those of plugins."""
    own = [*SETTINGS, *STEPS, *EXAMPLES, *ON_THE_WAY]
    return apply(function, [model_option(), *own, device_options, loading_options])


@click.command("train", cls=TrainCommand)
@train_options
@click.pass_context
@long_running
def train_command(ctx: click.Context, plugin_values: PluginValues, **values: Any) -> None:
    """Fine-tune a model.

    \b
    gemma4 train -m e2b-it --data train.jsonl -o run --lr 1e-5 --epochs 2
    gemma4 train -m e2b-it --data train.jsonl -o run --validation 0.1 --eval-every 50 --save-every 200
    gemma4 train --config run.yaml --lr 2e-5
    gemma4 train -o run --resume

    The folder of the newest checkpoint is printed; it opens like any other, and so does the run's folder.
    """
    if values["steps"] is not None and values["epochs"] is not None:
        raise click.UsageError("Give at most one of --steps and --epochs.")
    if values["output_dir"] is None and not values["dry_run"]:
        raise click.UsageError("Missing option '--output-dir' / '-o'.")
    if values["sample_every"] and not values["sample_prompt"]:
        raise click.UsageError("--sample-every needs --sample-prompt.")
    if values["early_stop"] and not (values["validation"] and values["eval_every"]):
        raise click.UsageError("--early-stop needs --validation and --eval-every.")
    values["epochs"] = values["epochs"] or 1
    values["clip"] = values["clip"] or None
    values["optimizer_options"] = once("--optimizer-option", map(pair, values.pop("optimizer_option")))
    values["columns"] = once("--column", map(column, values.pop("column")))
    from gemma4_plugins.commands.train.run import run

    run(values, plugin_values, ctx.meta[RECORDED])


def once(option: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs as a mapping. Raises UsageError for a name that is given twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise click.UsageError(f"{option} {clipped(name)} is given twice.")
        found[name] = value
    return found


def column(text: str) -> tuple[str, str]:
    """``messages=chat`` as key and column. Raises UsageError."""
    key, given, name = text.partition("=")
    if not given or not key.strip() or not name.strip():
        raise click.UsageError(f"--column {clipped(text)}: give KEY=NAME, such as messages=chat.")
    return key.strip(), name.strip()


def pair(text: str) -> tuple[str, Any]:
    """``momentum=0.9`` as name and value. Raises UsageError."""
    name, given, value = text.partition("=")
    if not given or not name.strip().isidentifier():
        raise click.UsageError(f"--optimizer-option {clipped(text)}: give NAME=VALUE, such as momentum=0.9.")
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return name.strip(), value
