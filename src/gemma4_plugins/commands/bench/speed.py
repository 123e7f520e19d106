"""The speed of a loaded model: prompts and answers through the ordinary generation loop.

A test is a prompt (``pp512``: 512 tokens) or an answer (``tg128``: 128 tokens) after ``depth`` tokens of context, or
the answers of many conversations at once, each after a prompt of its own (``tg128 @ p512 b8``). Everything is compiled
and captured before the first sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.devices.memory import peak_memory_bytes
from gemma4_core.generation.parts import Stats
from gemma4_core.generation.parts import statistics as stats_of
from gemma4_core.generation.scheduler import Scheduler
from gemma4_core.generation.tokens import check_prompt, run
from gemma4_plugins.commands.bench import together
from gemma4_plugins.commands.bench.traffic import cache_bytes, weight_bytes

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.model import GemmaCache

WARM_TOKENS = 3
"""Tokens of the warm-up answer, which captures the decode step."""
FIRST_PROMPT = 16
"""Tokens of the warm-up prompt where no prompt is measured."""


@dataclass(frozen=True)
class Workload:
    """What to measure: each prompt length and each answer length at each depth, ``repetitions`` times, and answers with
    each number of conversations at once."""

    prompts: Sequence[int] = (512,)
    answers: Sequence[int] = (128,)
    depths: Sequence[int] = (0,)
    repetitions: int = 3
    batches: Sequence[int] = (1,)

    @property
    def alone(self) -> int:
        """The longest context that a test of one conversation needs."""
        return max(self.depths) + max(max(self.prompts, default=0), max(self.answers, default=0) + 1, 1)

    @property
    def positions(self) -> int:
        """The longest context that a test needs."""
        needed = [case.positions for depth in self.depths for case in self.together(depth)]
        return max([self.alone, *needed])

    def together(self, depth: int) -> list[Together]:
        """The tests of several conversations at a depth."""
        return [Together(batch, length, count, depth) for batch in self.batches if batch > 1
                for length in self.prompts or (0,) for count in self.answers]


@dataclass(frozen=True)
class Together:
    """A test of several conversations at once."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    depth: int

    @property
    def length(self) -> int:
        """Tokens before the first that is measured."""
        return max(self.depth + self.prompt_tokens, 1)

    @property
    def positions(self) -> int:
        """Positions of each one's slot."""
        return together.positions(self.length, self.new_tokens, self.batch)


@dataclass(frozen=True)
class Result:
    """One test. ``samples`` are tokens per second, one for each repetition."""

    prompt_tokens: int
    new_tokens: int
    depth: int
    samples: tuple[float, ...]
    bytes_per_token: int | None = None
    """Weights and cache that each token of an answer reads; None where one read serves many tokens."""
    batch: int = 1
    """Conversations at once; the samples are of all together."""

    @property
    def test(self) -> str:
        kind = f"tg{self.new_tokens}" if self.new_tokens else f"pp{self.prompt_tokens}"
        place = [f"d{self.depth}"] if self.depth else []
        place += [f"p{self.prompt_tokens}", f"b{self.batch}"] if self.batch > 1 else []
        return f"{kind} @ {' '.join(place)}" if place else kind

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Standard deviation of the samples, 0 for a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def bytes_per_second(self) -> float | None:
        return None if self.bytes_per_token is None else self.bytes_per_token * self.mean


@dataclass
class Speed:
    """What was measured."""

    results: list[Result] = field(default_factory=list)
    first_token_seconds: float = 0.0
    """Seconds from the first prompt of this process to its first token, compiling and capturing included."""
    first_prompt_tokens: int = 0
    device_steps: tuple[str, ...] = ()
    """Which of ``decode`` and ``prefill`` the device plugin ran with kernels of its own."""
    step_kernels: int = 0
    """Kernels that a token of an answer launches; 0 where no answer was measured."""
    layer_kernels: int = 0
    """Those of them that the device plugin launches for the layers; 0 where it leaves them to tinygrad."""
    peak_memory_bytes: int = 0


def measure(model: LoadedModel, workload: Workload, tell: Callable[[str], Any] = lambda text: None) -> Speed:
    """Run all tests; ``tell`` is called with a line before each.

    Raises InputError where a test does not fit the context or memory, before anything runs.
    """
    ids = prompt_ids(model, workload.alone)
    check_prompt(model, ids, 0, model.make_cache(), {})
    for case in (case for depth in workload.depths for case in workload.together(depth)):
        together.check_fits(model, "--batch", case.batch, case.positions)
    found = Speed()
    for depth in workload.depths:
        bench = Bench(model, ids, depth, workload)
        tell(f"warming up at depth {depth}")
        seconds, length = bench.warm_up()
        if not found.first_prompt_tokens:
            found.first_token_seconds, found.first_prompt_tokens = seconds, length
        storage = bench.cache.reserve(model, 1, bench.cache.length)
        found.device_steps = model.engine.device_steps(storage)
        found.results += bench.results(tell)
        if workload.answers:
            found.step_kernels = model.engine.step_kernels(storage)
            found.layer_kernels = model.engine.layer_kernels(storage)
        found.results += [measure_together(model, case, workload.repetitions, tell)
                          for case in workload.together(depth)]
        found.peak_memory_bytes = max(found.peak_memory_bytes, peak_memory_bytes(model.device))
    return found


def measure_together(model: LoadedModel, case: Together, repetitions: int, tell: Callable[[str], Any]) -> Result:
    """Run one test of several conversations, each with a prompt of its own."""
    batch, length, count = case.batch, case.length, case.new_tokens
    tell(f"{batch} answers of {count} tokens at once after {length} each")
    ids = prompt_ids(model, batch * length)
    prompts = [ids[at : at + length] for at in range(0, len(ids), length)]
    with Scheduler(model, batch, case.positions, prefix_bytes=0) as scheduler:
        together.decode(scheduler, prompts, together.WARM_TOKENS)
        samples = tuple(together.decode(scheduler, prompts, count) for _ in range(repetitions))
    model.pool.clear()  # the next test has slots of another size
    return Result(case.prompt_tokens, count, case.depth, samples, None, batch)


def prompt_ids(model: LoadedModel, count: int, seed: int = 0) -> list[int]:
    """Random ids of the vocabulary, the same in every run; none is a media placeholder."""
    ids = np.random.default_rng(seed).integers(0, model.config.text_config.usable_ids, count)
    media = [spec.soft_token_id(model.config) for spec in model.known_specs]
    ids[np.isin(ids, media)] = model.config.pad_token_id
    return ids.tolist()


class Bench:
    """The tests of one depth, on one cache that is large enough for all of them."""

    def __init__(self, model: LoadedModel, ids: Sequence[int], depth: int, workload: Workload) -> None:
        self.model, self.ids, self.depth, self.workload = model, ids, depth, workload
        self.cache: GemmaCache = model.make_cache()
        self.cache.reserve(model, 1, min(len(ids) + WARM_TOKENS, model.max_context))

    def run(self, length: int, limit: int) -> Stats:
        """Generate ``limit`` tokens after the first ``length`` ids; what the cache holds of them is reused."""
        prompt = check_prompt(self.model, self.ids[:length], limit, self.cache, {})
        count = sum(1 for _ in run(self.model.engine, prompt))
        return stats_of(prompt.sequence, count, 0.0, self.model.device)

    def warm_up(self) -> tuple[float, int]:
        """Compile and capture what the tests need; returns seconds to the first token and the prompt's length."""
        length = min(self.depth + (self.workload.prompts[0] if self.workload.prompts else FIRST_PROMPT), len(self.ids))
        first = self.run(length, WARM_TOKENS)
        return first.prompt_seconds, length

    def results(self, tell: Callable[[str], Any]) -> Iterator[Result]:
        """Run the tests one after the other."""
        for count in self.workload.prompts:
            tell(f"prompt of {count} tokens at depth {self.depth}")
            yield Result(count, 0, self.depth, tuple(self.prompt(count) for _ in range(self.workload.repetitions)))
        for count in self.workload.answers if 1 in self.workload.batches else ():
            tell(f"answer of {count} tokens at depth {self.depth}")
            samples = tuple(self.answer(count) for _ in range(self.workload.repetitions))
            middle = max(self.depth, 1) + count / 2
            read = weight_bytes(self.model) + cache_bytes(self.model, middle)
            yield Result(0, count, self.depth, samples, read)

    def prompt(self, count: int) -> float:
        """Tokens per second of a prompt after ``depth`` tokens, up to and with the choice of the first token."""
        self.cache.truncate(self.depth)
        if self.cache.length < self.depth:
            self.run(self.depth, 1)
        return count / self.run(self.depth + count, 1).prompt_seconds

    def answer(self, count: int) -> float:
        """Tokens per second of an answer, its first token left out."""
        return count / self.run(max(self.depth, 1), count + 1).generation_seconds
