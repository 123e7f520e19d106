"""The engines that compare.py compares: this project, transformers and llama.cpp, if they are available.

Nothing is installed or downloaded: an engine that is not found says what it lacks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from payload import HERE, Ended, failed, parse, python, run

from gemma4_core.errors import Gemma4Error, InputError

OURS, TRANSFORMERS, COMPILED, LLAMA = "ours", "transformers", "transformers-compiled", "llama.cpp"
ENGINES = (OURS, TRANSFORMERS, COMPILED, LLAMA)
QUANTS = {"bf16": "bf16", "int8": "q8_0"}
"""llama.cpp's type for each of our formats."""


@dataclass(frozen=True)
class Test:
    """What every engine does: process a prompt of this many tokens, then generate this many new ones."""

    folder: Path
    work: Path
    device: str
    formats: Sequence[str]
    prompt_tokens: int
    new_tokens: int
    threads: int


@dataclass(frozen=True)
class Tools:
    """Paths of the peers."""

    python: str
    llama_bench: str | None
    llama_cpp: Path | None


@dataclass(frozen=True)
class Engine:
    """A program to run, how to read what it prints, or why there is none."""

    name: str
    engine: str
    format: str
    commands: Sequence[Sequence[str]] = ()
    read: Callable[[Sequence[str]], dict[str, Any]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: str | None = None

    def once(self, seconds: float | None) -> dict[str, Any]:
        """Run it. Returns ``prompt_tokens_per_second``, ``tokens_per_second`` and whatever else it reports. Raises
        InputError."""
        assert self.read is not None
        outs = []
        for command in self.commands:
            ended = run(command, self.environment, seconds)
            if ended.code != 0:
                raise InputError(f"{self.name}: {ended.why}")
            outs.append(ended.out)
        return self.read(outs)


def engines(wanted: Sequence[str], test: Test, tools: Tools, say: Callable[[str], None]) -> Iterator[Engine]:
    """All requested engines; those that are absent say so."""
    if OURS in wanted:
        yield from ours(test)
    for name in (TRANSFORMERS, COMPILED):
        if name in wanted and "bf16" in test.formats:
            yield transformers(test, tools, name)
    if LLAMA in wanted:
        for form in test.formats:
            if form in QUANTS:
                say(f"looking for llama.cpp {QUANTS[form]}")
                yield llama(test, tools, form)


def ours(test: Test) -> Iterator[Engine]:
    """This project, a process per run."""
    for form in test.formats:
        folder = test.folder if form == "bf16" else int8_folder(test)
        command = python("decode.py", "--model-dir", folder, "--device", test.device, "--format", form,
                         "--prompt-length", test.prompt_tokens, "--max-new-tokens", test.new_tokens + 1)  # fmt: skip
        threads = {"GEMMA4_THREADS": str(test.threads)}
        yield Engine(f"{OURS} {form}", OURS, form, [command], lambda outs: parse(outs[0], OURS), threads)


def int8_folder(test: Test) -> Path:
    """The quantised checkpoint, beside the ordinary one or in the work folder; made if it is absent."""
    from gemma4_core.quantize import done_before, quantize

    beside = test.folder.with_name(f"{test.folder.name}-int8")
    if done_before(beside, "int8"):
        return beside
    target = test.work / f"{test.folder.name}-int8"
    return target if done_before(target, "int8") else quantize(test.folder, target, "int8")


def transformers(test: Test, tools: Tools, name: str) -> Engine:
    """transformers in bf16, if the Python that was named can import it."""
    if name == COMPILED and test.device == "cpu":
        return Engine(name, name, "bf16", absent="transformers compiles its generation on GPUs only")
    code = "import torch, transformers.models.gemma4"
    ended = try_run([tools.python, "-c", code])
    if ended.code != 0:
        return Engine(name, name, "bf16", absent=f"{tools.python} cannot import torch and transformers with Gemma 4 "
                                                 f"({ended.why[:160]}); name one that can with --python")
    command = [tools.python, str(HERE / "peer_transformers.py"), str(test.folder), "--device", test.device, "--threads",
               str(test.threads), "--prompt-tokens", str(test.prompt_tokens), "--new-tokens", str(test.new_tokens),
               *(["--compiled"] if name == COMPILED else [])]  # fmt: skip
    return Engine(name, name, "bf16", [command], lambda outs: parse(outs[0], name), {"HF_HUB_OFFLINE": "1"})


def llama(test: Test, tools: Tools, form: str) -> Engine:
    """llama.cpp through llama-bench on a GGUF of the same weights, converted if it is absent."""
    quant = QUANTS[form]
    name = f"{LLAMA} {quant}"
    bench = tools.llama_bench and shutil.which(tools.llama_bench)
    if not bench:
        return Engine(name, LLAMA, form, absent="no llama-bench; build llama.cpp and name it with --llama-bench")
    try:
        file = gguf(test, tools, quant)
    except Gemma4Error as error:
        return Engine(name, LLAMA, form, absent=failed(error))
    usual = [bench, "-m", str(file), "-r", "1", "-o", "jsonl", "-t", str(test.threads),
             *(["-ngl", "0"] if test.device == "cpu" else ["-ngl", "99", "-fa", "1"])]  # fmt: skip
    prompt = [*usual, "-p", str(test.prompt_tokens), "-n", "0"]
    decode = [*usual, "-p", "0", "-n", str(test.new_tokens), "-d", str(test.prompt_tokens)]
    return Engine(name, LLAMA, form, [prompt, decode], lambda outs: from_llama(outs, name))


def gguf(test: Test, tools: Tools, quant: str) -> Path:
    """The GGUF of the checkpoint. Raises InputError if there is none and none can be made."""
    file = test.work / f"{test.folder.name}-{quant}.gguf"
    if file.is_file():
        return file
    converter = tools.llama_cpp and tools.llama_cpp / "convert_hf_to_gguf.py"
    if converter is None or not converter.is_file():
        raise InputError(f"no {file}, and no sources of llama.cpp to convert with; name their folder with --llama-cpp")
    unfinished = file.with_suffix(".tmp")
    command = [tools.python, str(HERE / "peer_gguf.py"), str(test.folder), "--outfile", str(unfinished), "--outtype",
               quant]  # fmt: skip
    ended = run(command, {"LLAMA_CPP": str(tools.llama_cpp)})
    if ended.code != 0 or not unfinished.is_file():
        unfinished.unlink(missing_ok=True)
        raise InputError(f"the converter of {tools.llama_cpp} failed: {ended.why[:200]}")
    os.replace(unfinished, file)
    return file


def from_llama(outs: Sequence[str], name: str) -> dict[str, Any]:
    """Rates from the JSON lines of llama-bench: the prompt's, then the new tokens'."""
    rates = []
    for out in outs:
        lines = [line for line in out.splitlines() if line.startswith("{")]
        found = parse(lines[-1] if lines else out, name)
        rate = found.get("avg_ts")
        if not isinstance(rate, int | float):
            raise InputError(f"{name} printed no avg_ts: {json.dumps(found)[:100]}")
        rates.append(float(rate))
    version = f"llama.cpp {found.get('build_number', '')} ({found.get('build_commit', '')})"
    return {"prompt_tokens_per_second": rates[0], "tokens_per_second": rates[1], "version": version}


def try_run(command: Sequence[str]) -> Ended:
    """Run a program that may not exist."""
    try:
        return run(command, seconds=300)
    except InputError as error:
        return Ended(127, "", str(error))
