"""Requests that end early, come from threads or are bad: each by itself, and no slot is lost."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from scheduling import CONTEXT, Residues, alone, answers, drain, model

from gemma4_core import Gemma4Error, InputError, Request, Scheduler
from gemma4_core.formatting import shown
from gemma4_core.generation import scheduler as scheduler_module

pytestmark = pytest.mark.usefixtures("plain_loops")
NAME = "dense-mm"
PLAIN: dict[str, Any] = {"prompt_tokens": [5, 6, 7, 8], "max_new_tokens": 12, "stop_ids": (), "seed": 1}


def expected(**options: Any) -> list[int]:
    return alone(model(NAME), PLAIN | options)


def test_cancel_frees_the_slot_with_the_next_step() -> None:
    with Scheduler(model(NAME), 1, CONTEXT) as scheduler:
        running, waiting, dropped = (scheduler.submit(Request(**PLAIN)) for _ in range(3))
        scheduler.step()
        assert scheduler.stats().running == scheduler.stats().slots_used == 1 and scheduler.stats().waiting == 2
        running.cancel()
        dropped.cancel()
        ended = [(one, part.finish_reason) for one, part in scheduler.step() if part.finish_reason]
        assert set(ended) == {(running, "cancelled"), (dropped, "cancelled")}
        assert scheduler.stats().running == 1 and running.answer.error is None
        drain(scheduler)
        assert waiting.answer.tokens == expected() and scheduler.stats().slots_used == 0
        assert scheduler.step() == []


def test_close_ends_everything_once_and_refuses_more() -> None:
    ours = model(NAME)
    scheduler = Scheduler(ours, 2, CONTEXT)
    running = [scheduler.submit(Request(**PLAIN)) for _ in range(3)]
    scheduler.step()
    scheduler.close()
    scheduler.close()
    assert all(one.done and one.answer.finish_reason == "cancelled" for one in running)
    for call in (scheduler.step, lambda: scheduler.submit(Request(**PLAIN))):
        with pytest.raises(InputError, match="closed"):
            call()
    assert answers(ours, [PLAIN], 2)[0].tokens == expected()  # the slots serve the next one


def test_a_deadline_ends_an_answer_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Scheduler(model(NAME), 2, CONTEXT) as scheduler:
        late = scheduler.submit(Request(**PLAIN, deadline=5))
        other = scheduler.submit(Request(**PLAIN, deadline=50))
        for _ in range(3):
            scheduler.step()
        now[0] += 6
        drain(scheduler)
    assert late.answer.finish_reason == "cancelled" and "deadline" in str(late.answer.error)
    assert 0 < len(late.answer.tokens) < 12 and other.answer.tokens == expected()


def test_submit_and_cancel_from_threads() -> None:
    ours, running, lock = model(NAME), [], threading.Lock()
    with Scheduler(ours, 3, CONTEXT) as scheduler:

        def work(number: int) -> None:
            for turn in range(6):
                one = scheduler.submit(Request(**PLAIN | {"seed": number, "temperature": 1.0}))
                if turn == 3:
                    one.cancel()
                with lock:
                    running.append((number, one))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or not scheduler.idle:
            scheduler.step()
        assert scheduler.stats().slots_used == 0
    whole = [expected(seed=number, temperature=1.0) for number in range(4)]
    assert len(running) == 24
    for number, one in running:
        assert one.done and one.answer.tokens == whole[number][: len(one.answer.tokens)]
        assert one.cancelled or one.answer.tokens == whole[number]


def test_several_answers_count_on_from_the_seed() -> None:
    with Scheduler(model(NAME), 3, CONTEXT) as scheduler:
        running = scheduler.submit(Request(**PLAIN | {"temperature": 1.0, "n": 4, "seed": 10}))
        events = []
        while not scheduler.idle:
            events += scheduler.step()
    assert [answer.tokens for answer in running.answers] == [expected(temperature=1.0, seed=10 + i) for i in range(4)]
    assert [answer.choice for answer in running.answers] == [0, 1, 2, 3]
    assert sorted(part.choice for _, part in events if part.finish_reason) == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------------- errors in one


def raising(ids: list[int], logits: np.ndarray) -> np.ndarray:
    if len(ids) > 6:
        raise ValueError("no more")
    return logits


class Odd(Residues):
    """A constraint that fails after some ids, in different ways."""

    def __init__(self, way: str) -> None:
        super().__init__(300)
        self.way = way

    def mask(self) -> np.ndarray:
        if len(self.taken) < 3:
            return super().mask()
        if self.way == "raises":
            raise RuntimeError("no mask")
        return {"short": super().mask()[:3], "type": super().mask().astype(np.float64), "none": None}[self.way]  # type: ignore[return-value]


BAD: dict[str, dict[str, Any]] = {
    "raises": {"logits_processor": raising},
    "shape": {"logits_processor": lambda ids, logits: logits[:-1]},
    "nan": {"logits_processor": lambda ids, logits: logits * np.nan},
    "words": {"logits_processor": lambda ids, logits: "x"},
    **{f"mask {way}": {"constraint": way} for way in ("raises", "short", "type", "none")},
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("draft", ["off", "lookup"])
def test_an_error_in_one_row_ends_that_row_alone(kind: str, draft: str) -> None:
    bad = {"constraint": Odd(BAD[kind]["constraint"])} if "constraint" in BAD[kind] else BAD[kind]
    with Scheduler(model(NAME), 3, CONTEXT) as scheduler:
        running = [scheduler.submit(Request(**PLAIN | options | {"draft": draft}))
                   for options in ({}, bad, {"seed": 2})]
        drain(scheduler)
        assert scheduler.stats().slots_used == 0
    assert running[1].answer.finish_reason == "cancelled" and running[1].answer.error
    assert "\n" not in running[1].answer.error
    assert [running[i].answer.tokens for i in (0, 2)] == [expected(), expected(seed=2)]
    with pytest.raises(Gemma4Error):
        bad = {"constraint": Odd(BAD[kind]["constraint"])} if "constraint" in BAD[kind] else BAD[kind]
        alone(model(NAME), PLAIN | bad)


def test_a_logits_processor_has_the_last_word_in_company() -> None:
    def only_nines(ids: list[int], logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logits)) == 9, 0.0, -np.inf)

    same: dict[str, Any] = {"logits_processor": lambda ids, logits: logits, "top_logprobs": 3}
    options: list[dict[str, Any]] = [{}, {"logits_processor": only_nines}, same]
    found = answers(model(NAME), [PLAIN | one for one in options], 3)
    assert [answer.tokens for answer in found] == [expected(), [9] * 12, expected()]
    assert all(top[0] == (token, pytest.approx(logprob, abs=1e-4)) and len(top) == 3
               for top, token, logprob in zip(found[2].top_logprobs, found[2].tokens, found[2].logprobs, strict=True))


# ---------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("parallel", [0, -1, "many", True, 1.5, None, 10**9])
def test_a_bad_number_at_a_time_is_refused(parallel: Any) -> None:
    with pytest.raises(InputError, match="parallel") as error:
        Scheduler(model(NAME), parallel, CONTEXT)
    assert shown(parallel) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="parallel"):
        list(model(NAME).answer_all([], parallel=parallel))


def test_a_context_is_at_most_the_models() -> None:
    with Scheduler(model(NAME), 1, 10**6) as scheduler:
        assert scheduler.context == model(NAME).max_context


@pytest.mark.parametrize("context", [0, -5, 1.5, True, "long"])
def test_a_context_outside_the_models_is_refused(context: Any) -> None:
    with pytest.raises(InputError, match="context"):
        Scheduler(model(NAME), 1, context)


def test_auto_takes_what_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    size = scheduler_module.slot_bytes(model(NAME), 50)
    monkeypatch.setattr(scheduler_module, "free_memory_bytes", lambda device: 5 * size)
    with Scheduler(model(NAME), "auto", 50) as scheduler:
        assert scheduler.parallel == 3  # and a slot for snapshots
    with pytest.raises(InputError, match="6 slots"):
        Scheduler(model(NAME), 6, 50)
    monkeypatch.setattr(scheduler_module, "free_memory_bytes", lambda device: size // 2)
    with pytest.raises(InputError, match="context"):
        Scheduler(model(NAME), "auto", 50)


def test_what_the_model_cannot_run_comes_back_as_its_answers_error() -> None:
    bad: dict[str, dict[str, Any]] = {
        "7 more": {"prompt_tokens": [5] * 27}, "1000000": {"prompt_tokens": [10**6]}, "empty": {"prompt_tokens": []},
        "logit_bias": {"logit_bias": {10**6: 1.0}}, "tokenizer": {"stop": ["x"]},
        "max_new_tokens": {"max_new_tokens": -1}, "one row": {"prompt_tokens": [[1], [2]]},
    }
    with Scheduler(model(NAME), 2, 20) as scheduler:
        running = {said: scheduler.submit(Request(**PLAIN | options)) for said, options in bad.items()}
        good = scheduler.submit(Request(**PLAIN | {"max_new_tokens": None}))
        none = scheduler.submit(Request(**PLAIN | {"max_new_tokens": 0}))
        drain(scheduler)
        assert scheduler.stats().slots_used == 0
    for said, one in running.items():
        assert one.answer.finish_reason == "cancelled" and said in str(one.answer.error), (said, one.answer.error)
    assert good.answer.tokens == expected(max_new_tokens=17) and good.answer.finish_reason == "length"
    assert none.answer.tokens == [] and none.answer.finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one"),
        ({"prompt": "a", "prompt_tokens": [1]}, "exactly one"),
        ({"prompt": "a", "messages": []}, "exactly one"),
        ({"prompt_tokens": [1], "temprature": 1.0}, "temperature"),
        ({"prompt_tokens": [1], "imagess": []}, "images"),
        ({"prompt_tokens": [1], "n": 0}, "n 0"),
        ({"prompt_tokens": [1], "n": True}, "n true"),
        ({"prompt_tokens": [1], "top_logprobs": 21}, "top_logprobs 21"),
        ({"prompt_tokens": [1], "num_draft_tokens": 0}, "num_draft_tokens 0"),
        ({"prompt_tokens": [1], "deadline": 0}, "deadline 0"),
        ({"prompt_tokens": [1], "deadline": float("nan")}, "deadline"),
        ({"prompt_tokens": [1], "logit_bias": {"a": 1}}, '"a"'),
        ({"prompt_tokens": [1], "logit_bias": {1: float("nan")}}, "NaN"),
        ({"prompt_tokens": [1], "presence_penalty": 3}, "presence_penalty 3"),
        ({"prompt_tokens": [1], "logits_processor": 5}, "logits_processor 5"),
        ({"prompt_tokens": [1], "stop": [""]}, "empty"),
        ({"prompt_tokens": [1], "stop_ids": "ab"}, "stop_ids"),
        ({"prompt_tokens": [1], "stop_ids": [1.5]}, "stop_ids"),
        ({"prompt_tokens": [1], "constraint": 5}, "constraint"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        Request(**options)
    assert said in str(error.value) and "\n" not in str(error.value)
