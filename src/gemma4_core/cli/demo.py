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
    """A folder with the demo model: the given one, or a temporary one."""
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


def report(model: GemmaModel, first: Answer, second: Answer, nbytes: int) -> list[str]:
    """What happened, in lines."""
    assert first.stats is not None and second.stats is not None
    cold, warm = first.stats.as_dict(), second.stats.as_dict()
    parameters = sum(int(t.numel()) for t in model.named_tensors().values())
    same = "the same answer" if second.tokens == first.tokens else "ANOTHER ANSWER: please report this"
    return [
        f"model     {model!r}",
        f"          {human_count(parameters)} parameters, {human_bytes(nbytes)}, loaded in {model.load_seconds:.2f} s",
        f"prompt    {QUESTION} ({cold['prompt_tokens']} tokens)",
        f"answer    {escaped(first.text)}",
        "",
        f"first time   {cold['prompt_seconds'] + cold['generation_seconds']:.2f} s, kernels compiled on the way",
        f"again        {warm['generated_tokens']} tokens at {warm['generation_tps']:.1f} tokens/s, {same}",
    ]


@click.command("demo", cls=GemmaCommand)
@device_options
@click.option("--max-new-tokens", "--max-tokens", "-n", type=Whole(2, 4000), default=48, show_default=True, metavar="N",
              help="Length of the answer.")
@click.option("--keep", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Write the model there and keep it.")
def demo_command(device: str, beam: int, beam_seconds: float | None, max_new_tokens: int, keep: Path | None) -> None:
    """Show that everything works here: write a tiny model, load it, let it answer twice.

    Its weights are random, so its answer makes no sense; a real model's does.
    """
    from gemma4_core import loading

    if on_terminal():
        note("writing, loading and compiling a tiny model …")
    with demo_folder(keep) as folder:
        options: dict[str, Any] = {"beam": beam, "beam_seconds": beam_seconds}
        model = loading.load_pretrained(folder, device=device, modalities=("text",), **options)
        first, second = answer(model, max_new_tokens), answer(model, max_new_tokens)
        nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    lines = [GREETING, "", *report(model, first, second, nbytes), ""]
    if keep is not None:
        lines += [f'The model is in {keep}: gemma4 generate -m {keep} --prompt "Hello"', ""]
    write("\n".join([*lines, NEXT, ""]))
