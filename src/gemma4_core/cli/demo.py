"""``gemma4 demo``: show in under a minute that everything works here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.failures import escaped
from gemma4_core.cli.options import Whole, device_options
from gemma4_core.cli.output import human_bytes, human_count, note, on_terminal, show_all, write

if TYPE_CHECKING:
    from gemma4_core.cli.output import Answer
    from gemma4_core.model import GemmaModel

GREETING = "A tiny Gemma 4 with random weights: its answer makes no sense, but everything that makes it is real."
QUESTION = "Write a haiku about tinygrad."
NEXT = """What to try next:
  gemma4 doctor                                      devices, compiler, plugins
  gemma4 download --sizes E2B --it                   a real model (10 GB)
  gemma4 generate -m e2b-it --prompt "Hello"         ask it
  gemma4 chat -m e2b-it                              talk with it
  gemma4 info --size 31B                             what a larger one needs"""


@contextmanager
def demo_folder(keep: Path | None) -> Iterator[Path]:
    """A folder with the random model: the given one, or a temporary one."""
    from gemma4_core.demo import write_demo_checkpoint

    if keep is not None:
        yield write_demo_checkpoint(keep)
        return
    with tempfile.TemporaryDirectory(prefix="gemma4-demo-") as folder:
        yield write_demo_checkpoint(Path(folder) / "model")


def answer(model: GemmaModel, tokens: int) -> Answer:
    """A greedy answer of exactly so many tokens to the demo's question."""
    messages = [{"role": "user", "content": QUESTION}]
    return show_all(model.stream_generate(messages, max_new_tokens=tokens, stop_ids=(), temperature=0.0), None)


def about(model: GemmaModel, folder: Path) -> list[str]:
    """What the model is, in lines."""
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    parameters = sum(int(t.numel()) for t in model.named_tensors().values())
    return [
        f"model     {model!r}",
        f"          {human_count(parameters)} parameters, {human_bytes(nbytes)}, loaded in {model.load_seconds:.2f} s",
    ]


def report(first: Answer, second: Answer) -> list[str]:
    """What a random model did, in lines."""
    assert first.stats is not None and second.stats is not None
    cold, warm = first.stats.as_dict(), second.stats.as_dict()
    same = "the same answer" if second.tokens == first.tokens else "ANOTHER ANSWER: please report this"
    return [
        f"prompt    {QUESTION} ({cold['prompt_tokens']} tokens)",
        f"answer    {escaped(first.text)}",
        "",
        f"first time   {cold['prompt_seconds'] + cold['generation_seconds']:.2f} s, kernels compiled on the way",
        f"again        {warm['generated_tokens']} tokens at {warm['generation_tps']:.1f} tokens/s, {same}",
    ]


def show_random(options: dict[str, Any], tokens: int, keep: Path | None) -> list[str]:
    """Let a random model answer twice."""
    from gemma4_core import loading

    with demo_folder(keep) as folder:
        model = loading.load_pretrained(folder, modalities=("text",), **options)
        first, second = answer(model, tokens), answer(model, tokens)
        lines = [GREETING, "", *about(model, folder), *report(first, second), ""]
    if keep is not None:
        lines += [f'The model is in {keep}: gemma4 generate -m {keep} --prompt "Hello"', ""]
    return lines


@click.command("demo", cls=GemmaCommand)
@device_options
@click.option("--max-new-tokens", "--max-tokens", "-n", type=Whole(2, 900), default=48, show_default=True, metavar="N",
              help="Length of the answer that is timed.")
@click.option("--seed", type=Whole(0), default=None, metavar="N",
              help="Of picture, sound and sum; without it they differ each time.")
@click.option("--keep", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Write the model there and keep it, picture and sound beside it.")
def demo_command(
    device: str, beam: int, beam_seconds: float | None, max_new_tokens: int, seed: int | None, keep: Path | None
) -> None:
    """Show that everything works here, with a tiny model: a text, a sum, a picture described, a sound written down.

    Without the trained model in the package a random one answers; its answer makes no sense.
    """
    from gemma4_core.demo import packaged_demo

    if on_terminal():
        note("loading and compiling a tiny model …")
    options: dict[str, Any] = {"device": device, "beam": beam, "beam_seconds": beam_seconds}
    trained = packaged_demo()
    if trained is None:
        lines = show_random(options, max_new_tokens, keep)
    else:
        from gemma4_core.cli.demo_show import show_trained

        lines = show_trained(trained, options, max_new_tokens, seed, keep)
    write("\n".join([*lines, NEXT, ""]))
