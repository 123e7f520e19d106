"""A device whose steps are queued before earlier tokens are read: same tokens, right order, a cache that can go on."""

from __future__ import annotations

import dataclasses

import pytest
from reference_data import load
from tinygrad import Tensor

from gemma4_core import GemmaCache, load_pretrained
from gemma4_core.contracts.rows import Rows, SamplingRows
from gemma4_core.contracts.steps import Slots, StepResult
from gemma4_core.engine.engine import Engine
from gemma4_core.engine.sequence import Sequence
from gemma4_core.generation.sampling import Sampling
from gemma4_core.generation.tokens import check_prompt, run
from gemma4_core.model import GemmaModel
from gemma4_core.ops.steps import Outcome

pytestmark = pytest.mark.usefixtures("plain_loops")
AHEAD, NEW = 2, 10
Log = list[tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Result(Outcome):
    """What a queued step leaves."""

    log: Log = dataclasses.field(default_factory=list)
    position: int = 0

    def read(self) -> list[tuple[int, float]]:
        self.log.append(("read", self.position))
        return super().read()


class Queued:
    """The portable step of one position as a device that runs ahead shows it."""

    max_rows, ahead = 1, AHEAD

    def __init__(self, engine: Engine, slots: Slots, log: Log) -> None:
        self.engine, self.slots, self.log = engine, slots, log

    def serves(self, rows: Rows, sampling: SamplingRows | None) -> bool:
        return rows.count == 1

    def __call__(
        self, rows: Rows, sampling: SamplingRows | None, *, hidden: bool = False, logits: bool = False
    ) -> StepResult:
        position = int(rows.position[0])
        self.log.append(("issue", position))
        found = self.engine.portable.run(self.slots, rows, sampling)  # type: ignore[arg-type]
        assert isinstance(found, Outcome)
        kept = [tensor.clone().realize() for tensor in (found.ids, found.logprobs)]
        return Result(kept[0], kept[1], log=self.log, position=position)


@pytest.fixture(scope="module")
def log() -> Log:
    return []


@pytest.fixture(scope="module")
def plain() -> GemmaModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA4_KERNELS", "portable")
        return load_pretrained(load("e2b").folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def queued(log: Log) -> GemmaModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA4_KERNELS", "portable")
        model = load_pretrained(load("e2b").folder, device="cpu", dtype="float32")
    model.operations = dataclasses.replace(
        model.operations, step=lambda view, slots: Queued(model.engine, slots, log), run_ahead=AHEAD
    )
    return model


def answer(
    model: GemmaModel, prompt: list[int], stops: tuple[int, ...] = (), cache: GemmaCache | None = None, **options: float
) -> tuple[list[int], Sequence]:
    checked = check_prompt(model, prompt, NEW, cache, {}, Sampling(**options).choices(), stops)
    return [token.id for token in run(model.engine, checked)], checked.sequence


def prompt() -> list[int]:
    return [int(i) for i in load("e2b").ids[0]][:9]


def test_steps_are_issued_ahead_and_read_in_order(plain: GemmaModel, queued: GemmaModel, log: Log) -> None:
    log.clear()
    assert answer(queued, prompt())[0] == answer(plain, prompt())[0]
    positions = list(range(len(prompt()), len(prompt()) + NEW - 1))
    assert [p for kind, p in log if kind == "issue"] == positions  # not one too many
    assert [p for kind, p in log if kind == "read"] == positions
    assert log[: AHEAD + 2] == [*(("issue", p) for p in positions[: AHEAD + 1]), ("read", positions[0])]


def test_steps_queued_beyond_a_stop_leave_nothing_behind(plain: GemmaModel, queued: GemmaModel) -> None:
    whole = answer(plain, prompt())[0]
    stop = next(token for i, token in enumerate(whole) if i > 1 and token not in whole[:i])
    cache = queued.make_cache()
    tokens, sequence = answer(queued, prompt(), (stop,), cache)
    assert tokens == whole[: whole.index(stop)] and sequence.finish_reason == "stop"
    assert cache.length == len(prompt()) + len(tokens)
    longer = [*prompt(), *tokens, 7, 8, 9]
    again, sequence = answer(queued, longer, (), cache)
    assert sequence.reused == len(prompt()) + len(tokens)
    assert again == answer(plain, longer)[0]


def test_what_the_host_must_see_is_not_queued(queued: GemmaModel, log: Log) -> None:
    expected = list(queued.generate(prompt(), NEW, stop_ids=()))
    log.clear()
    assert [p.token for p in queued.stream_generate(prompt_tokens=prompt(), max_new_tokens=NEW, stop_ids=(),
                                                    top_logprobs=1) if p.token is not None] == expected
    kinds = [kind for kind, _ in log]
    assert kinds == ["issue", "read"] * (NEW - 1)
    assert list(queued.generate(prompt(), NEW, stop_ids=(), draft="lookup")) == expected


def test_tensors_of_ids_are_taken_from_the_step_before(queued: GemmaModel) -> None:
    given: list[object] = []
    kept = Queued.__call__

    def watched(self: Queued, rows: Rows, *others: object, **options: object) -> StepResult:
        given.append(rows.ids)
        return kept(self, rows, *others, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Queued, "__call__", watched)
        answer(queued, prompt())
    assert [isinstance(ids, Tensor) for ids in given] == [False, *[True] * (NEW - 2)]
