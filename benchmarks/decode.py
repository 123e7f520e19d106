"""The speed of one model on one device, in one process: the benchmark that matrix.py and paired.py run.

    python benchmarks/decode.py --model-dir models/gemma-4-E2B --device cpu --max-new-tokens 64

Prints one JSON object; its ``score`` is ``tokens_per_second``, the rate of decoding after the first token. A first run
of a few tokens captures and compiles and is reported separately. Stop tokens are off, so that exactly the requested
number of tokens is generated; ``tokens_sha256`` is the SHA-256 of their ids in decimal, joined by commas.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from bandwidth import measured
from payload import failed, revision, start

import gemma4_core
from gemma4_core.checkpoint.atomic import append_line
from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.hub import resolve_folder
from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.failures import causes
from gemma4_core.cli.options import Number, Whole, device_options, model_option
from gemma4_core.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """What to measure."""

    model: str
    device: str
    beam: int
    beam_seconds: float | None
    format: str
    prompt_length: int
    max_new_tokens: int
    warmup_tokens: int


class ProgressLog:
    """Appends a JSON line per event to a file, if there is one: a reader sees whole lines."""

    def __init__(self, path: str | None, every: int) -> None:
        self.path, self.every, self.began = path, every, time.perf_counter()

    def note(self, event: str, **values: Any) -> None:
        """Write one event."""
        if self.path is None:
            return
        seconds = round(time.perf_counter() - self.began, 3)
        append_line(Path(self.path), json.dumps({"event": event, "seconds": seconds, **values}))

    def token(self, count: int, began: float, first: float) -> None:
        """Record progress and speed, at the interval given in tokens."""
        if self.every and count % self.every == 0:
            now = time.perf_counter()
            rate = round((count - 1) / (now - first), 3) if count > 1 else None
            self.note("tokens", tokens=count, run_seconds=round(now - began, 3), tokens_per_second=rate)


@dataclass(frozen=True)
class Run:
    """Ids of one generation, and when the prompt and the tokens after the first were done."""

    ids: list[int]
    prompt_seconds: float
    decode_seconds: float

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first."""
        return (len(self.ids) - 1) / self.decode_seconds if len(self.ids) > 1 else None


def generate(model: Any, prompt: list[int], wanted: Wanted, limit: int, log: ProgressLog) -> Run:
    """The first ``limit`` of ``max_new_tokens`` greedy tokens: room for all of them is made in either case."""
    began = first = time.perf_counter()
    ids: list[int] = []
    tokens: Iterator[int] = model.generate(prompt, wanted.max_new_tokens, stop_ids=())
    for token in itertools.islice(tokens, limit):
        if not ids:
            first = time.perf_counter()
        ids.append(token)
        log.token(len(ids), began, first)
    return Run(ids, first - began, time.perf_counter() - first)


def measure(wanted: Wanted, log: ProgressLog) -> dict[str, Any]:
    """Load, run and time. Raises Gemma4Error and MemoryError."""
    from gemma4_core import load_pretrained
    from gemma4_core.devices.memory import peak_memory_bytes, peak_rss_bytes
    from gemma4_plugins.commands.bench.speed import prompt_ids
    from gemma4_plugins.commands.bench.traffic import weight_bytes

    model = load_pretrained(
        wanted.model, device=wanted.device, format=wanted.format, modalities=("text",), beam=wanted.beam,
        beam_seconds=wanted.beam_seconds,
    )  # fmt: skip
    room = model.max_context - wanted.prompt_length + 1
    if wanted.max_new_tokens > room:
        raise InputError(f"--max-new-tokens {wanted.max_new_tokens}: after {wanted.prompt_length} tokens of prompt the "
                         f"context of {model.max_context} has room for {max(room, 0)}")
    log.note("loaded", load_seconds=round(model.load_seconds, 3))
    prompt = prompt_ids(model, wanted.prompt_length)
    began = time.perf_counter()
    if wanted.warmup_tokens:
        few = min(wanted.warmup_tokens + 1, wanted.max_new_tokens)
        generate(model, prompt, wanted, few, ProgressLog(None, 0))
        log.note("warm")
    warmup = time.perf_counter() - began
    run = generate(model, prompt, wanted, wanted.max_new_tokens, log)
    if len(run.ids) != wanted.max_new_tokens:
        raise InputError(f"--max-new-tokens {wanted.max_new_tokens}: the model ended after {len(run.ids)}")
    nbytes = weight_bytes(model)
    return {
        "score": run.rate,
        "tokens_per_second": run.rate,
        "milliseconds_per_token": 1e3 / run.rate if run.rate else None,
        "generated_tokens": len(run.ids),
        "tokens_sha256": hashlib.sha256(",".join(map(str, run.ids)).encode()).hexdigest(),
        "prompt_tokens": len(prompt),
        "prompt_seconds": run.prompt_seconds,
        "prompt_tokens_per_second": len(prompt) / run.prompt_seconds,
        "load_seconds": model.load_seconds,
        "warmup_seconds": warmup,
        "peak_memory_bytes": peak_memory_bytes(model.device),
        "peak_rss_bytes": peak_rss_bytes(),
        "bytes_per_token": nbytes,
        "effective_gbps": nbytes * run.rate / 1e9 if run.rate else None,
        "format": model.format_name,
        "device": model.device_name,
        "operations": model.operations.name,
    }


def with_limit(found: dict[str, Any], before: float | None, after: float | None) -> dict[str, Any]:
    """A payload with the read rates of the same minute. The percentage is of the larger one."""
    known = [rate for rate in (before, after) if rate]
    gbps = found.get("effective_gbps")
    percent = 100 * gbps / max(known) if known and gbps else None
    return found | {"read_gbps_before": before, "read_gbps_after": after, "percent_of_limit": percent}


def check_device(device: str, beam: int) -> str:
    """The name of the device that will be used. Raises PluginError and DeviceError where it is not there."""
    from gemma4_core.contracts import DeviceSettings
    from gemma4_core.devices import activate

    return activate(device, DeviceSettings(beam))[0].name


def run_wanted(wanted: Wanted, log: ProgressLog, read: bool, report: bool) -> dict[str, Any]:
    """Measure. With ``report`` a failure is printed as JSON for a parent process before it is raised."""
    stage = "unavailable"
    try:
        device = check_device(wanted.device, wanted.beam)
        stage = "failed"
        read_context(resolve_folder(wanted.model))  # report a wrong folder before anything takes time
        before = measured(device) if read else None
        found = measure(wanted, log)
        return with_limit(found, before, measured(device) if read else None)
    except Exception as error:
        if report:
            status = "out of memory" if any(isinstance(cause, MemoryError) for cause in causes(error)) else stage
            print(json.dumps({"status": status, "error": failed(error)}), flush=True)
        raise


@click.command("decode", cls=GemmaCommand)
@model_option()
@device_options
@click.option("--format", "format_name", default="auto", show_default=True, metavar="NAME",
              help="Checkpoint format plugin.")
@click.option("--prompt-length", type=Whole(), default=32, show_default=True, help="Tokens before the generated ones.")
@click.option("--max-new-tokens", type=Whole(), default=64, show_default=True, help="Exactly this many are generated.")
@click.option("--decode-warmup-tokens", type=Whole(0), default=4, show_default=True,
              help="Tokens of a first run that captures and compiles; with 0 that is part of the figures.")
@click.option("--min-score", type=Number(0), default=None, help="Exit with code 1 if the score is below this.")
@click.option("--bandwidth/--no-bandwidth", default=False, show_default=True,
              help="Measure the device's read rate before and after.")
@click.option("--progress-file", type=click.Path(dir_okay=False), default=None, help="File that gets a JSON line now "
              "and then.")
@click.option("--progress-every", type=Whole(0), default=0, metavar="TOKENS", help="How often; 0 is never.")
@click.option("--report-failure", is_flag=True, hidden=True)
def decode_command(
    model: str, device: str, beam: int, beam_seconds: float | None, format_name: str, prompt_length: int,
    max_new_tokens: int, decode_warmup_tokens: int, min_score: float | None, bandwidth: bool,
    progress_file: str | None, progress_every: int, report_failure: bool,
) -> None:  # fmt: skip
    """Measure how fast a model decodes, and print one JSON object."""
    wanted = Wanted(model, device, beam, beam_seconds, format_name, prompt_length, max_new_tokens, decode_warmup_tokens)
    log = ProgressLog(progress_file, progress_every)
    found = run_wanted(wanted, log, bandwidth, report_failure)
    source = revision(Path(gemma4_core.__file__).parent)
    print(json.dumps(found | {"revision": source}, allow_nan=False))
    score = found["score"]
    if min_score is not None and (score is None or score < min_score):
        raise InputError(f"--min-score {min_score:g}: the score is {'unknown' if score is None else f'{score:.4g}'}")


if __name__ == "__main__":
    start(decode_command, __file__)
