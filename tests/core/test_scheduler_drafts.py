"""Drafts and constraints: proposals change how fast an answer comes and never what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scheduling import CONTEXT, FAMILIES, Residues, alone, answers, drafter, drain, mixed, model

from gemma4_core import InputError, PluginError, Request, Scheduler

pytestmark = pytest.mark.usefixtures("plain_loops")
SOME = ["dense-mm", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "dense-mm")]
Script = Callable[[list[int], int], list[int]]


WILD = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "presence_penalty": 0.4,
        "frequency_penalty": 0.5, "logit_bias": {11: 2.0}}


def requests(name: str, count: int = 8) -> list[dict[str, Any]]:
    """Some that choose greedily, some with everything that there is; prompts that repeat themselves among them."""
    made = [{"seed": 1, "stop_ids": (), "max_new_tokens": 12} | ({} if number % 2 else WILD)
            | {key: options[key] for key in ("prompt", "prompt_tokens") if key in options}
            for number, options in enumerate(mixed(name, count))]
    made[-1]["prompt_tokens"], made[-2]["prompt_tokens"] = [*range(10, 16)] * 5, [*range(20, 26)] * 5
    return made


def scripts(name: str, whole: list[list[int]]) -> dict[str, Script]:
    """Drafters that are random, always right, always wrong, and propose more than there is room for."""
    vocabulary, rng = model(name).config.text_config.vocab_size, np.random.default_rng(3)

    def right(ids: list[int], k: int) -> list[int]:
        for full in whole:
            if full[: len(ids)] == ids:
                return full[len(ids) : len(ids) + k]
        return []

    return {
        "random": lambda ids, k: rng.integers(-2, vocabulary + 2, k).tolist(),
        "right": right,
        "wrong": lambda ids, k: [(token + 1) % vocabulary for token in right(ids, k)],
        "half": lambda ids, k: [token if i < 2 else 5 for i, token in enumerate(right(ids, k))],
        "more": lambda ids, k: [*right(ids, k), *[7] * k],
        "none": lambda ids, k: [],
    }


def test_the_counts_of_an_answer_that_was_cancelled_reach_nobody_who_gets_its_slot() -> None:
    ours = model("dense-mm")
    penalties = {"repetition_penalty": 1.9, "presence_penalty": 2.0, "frequency_penalty": 2.0, "stop_ids": ()}
    second: dict[str, Any] = {"prompt_tokens": [5, 6, 7], "max_new_tokens": 12, **penalties}
    expected = alone(ours, second)
    # the first answer holds what the second is going to choose
    first = {"prompt_tokens": [8, 9], "max_new_tokens": 60, "logit_bias": dict.fromkeys(expected, 30.0), **penalties}
    with drafter("test-any", lambda ids, k: [expected[len(ids) % len(expected)]] * k):
        for steps in (3, 6, 9):
            with Scheduler(ours, 1, CONTEXT) as scheduler:
                cancelled = scheduler.submit(Request(**first, draft="test-any"))
                for _ in range(steps):
                    scheduler.step()
                cancelled.cancel()
                running = scheduler.submit(Request(**second))
                drain(scheduler)
                assert cancelled.answer.finish_reason == "cancelled" and running.answer.tokens == expected


@pytest.mark.parametrize("script", [lambda ids, k: 1 // 0, lambda ids, k: [2.5, "x"]])
def test_a_drafter_that_fails_ends_its_own_answers(script: Any) -> None:
    ours = model("dense-mm")
    options: dict[str, Any] = {"prompt_tokens": [5, 6, 7], "max_new_tokens": 6, "stop_ids": ()}
    with drafter("test-bad", script), Scheduler(ours, 2, CONTEXT) as scheduler:
        bad, good = scheduler.submit(Request(**options, draft="test-bad")), scheduler.submit(Request(**options))
        drain(scheduler)
    assert good.answer.tokens == alone(ours, options) and good.answer.error is None
    assert "drafter test-bad" in (bad.answer.error or "") and bad.answer.finish_reason == "cancelled"


@pytest.mark.parametrize("name", SOME)
def test_a_drafted_answer_is_the_one_without_drafts(name: str) -> None:
    ours, made = model(name), requests(name)
    expected = [alone(ours, options) for options in made]
    # tokens of media are told by marks that no drafter of these knows
    whole = [[*options["prompt_tokens"], *tokens] for options, tokens in zip(made, expected, strict=True)
             if "prompt_tokens" in options]
    parallel = 2 if name == "dense-mm" else 4  # each number of rows is a graph of its own
    for kind, script in {"lookup": None, **scripts(name, whole)}.items():
        draft = "lookup" if script is None else f"test-{kind}"
        with drafter(draft, script) if script is not None else pytest.MonkeyPatch.context():
            found = answers(ours, [options | {"draft": draft} for options in made], parallel)
            assert [answer.tokens for answer in found] == expected, kind
            assert alone(ours, made[-1] | {"draft": draft}) == expected[-1], kind
        drafted = sum(answer.stats.drafted_tokens for answer in found if answer.stats is not None)
        accepted = sum(answer.stats.accepted_tokens for answer in found if answer.stats is not None)
        assert accepted <= drafted and (drafted > 0) == (kind != "none")
        assert kind != "right" or accepted == drafted
        assert kind != "wrong" or accepted == 0


def test_right_drafts_save_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = model("dense-mm")
    options = {"prompt_tokens": [5, 6, 7], "max_new_tokens": 24, "stop_ids": (), "seed": 0}
    whole = [5, 6, 7, *alone(ours, options)]
    steps = []
    with drafter("test-right", lambda ids, k: whole[len(ids) : len(ids) + k]):
        for draft in ("off", "test-right"):
            with Scheduler(ours, 1, CONTEXT) as scheduler:
                running = scheduler.submit(Request(**options, draft=draft))
                drain(scheduler)
                steps.append(scheduler.stats().steps)
            assert [5, 6, 7, *running.answer.tokens] == whole
    assert steps[0] == 23 and steps[1] <= 6


def test_drafts_that_never_fit_are_given_up_for_a_while() -> None:
    ours = model("dense-mm")
    options = {"prompt_tokens": [5, 6, 7], "max_new_tokens": 40, "stop_ids": (), "seed": 0}
    whole = [5, 6, 7, *alone(ours, options)]
    with drafter("test-wrong", lambda ids, k: [(whole[len(ids)] + 1) % 300]):
        [answer] = answers(ours, [options | {"draft": "test-wrong"}], 1)
    assert answer.stats is not None and answer.stats.accepted_tokens == 0
    assert answer.stats.drafted_tokens < 10 and answer.tokens == whole[3:]


def test_drafts_end_where_slot_and_answer_end() -> None:
    ours = model("e2b-mm")
    options = {"prompt_tokens": [*range(10, 40)], "stop_ids": (), "seed": 2, "temperature": 1.0}
    limit = alone(ours, options | {"max_new_tokens": 11})
    with drafter("test-long", lambda ids, k: [9] * k):
        [answer] = answers(ours, [options | {"draft": "test-long", "num_draft_tokens": 64}], 2, context=40)
    assert answer.tokens == limit and answer.finish_reason == "length"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_constrained_answer_is_the_same_drafted_and_in_company(name: str) -> None:
    ours, vocabulary = model(name), model(name).config.text_config.vocab_size
    made = [options | {"max_new_tokens": 12, "stop_ids": ()} for options in requests(name, 6)]
    expected = [alone(ours, options | {"constraint": Residues(vocabulary)}) for options in made]
    for tokens in expected:
        assert all(token % 5 == (sum(tokens[:i]) + i) % 5 for i, token in enumerate(tokens))
    whole = [[*options["prompt_tokens"], *tokens] for options, tokens in zip(made, expected, strict=True)
             if "prompt_tokens" in options]
    known = scripts(name, whole)
    for kind in ("right", "half", "random", "off"):
        constraints = [Residues(vocabulary) for _ in made]
        draft = f"test-{kind}" if kind != "off" else "off"
        with drafter(f"test-{kind}", known.get(kind, known["none"])):
            found = answers(ours, [options | {"draft": draft, "constraint": constraint}
                                   for options, constraint in zip(made, constraints, strict=True)], 3)
        assert [answer.tokens for answer in found] == expected, kind
        assert [constraint.taken for constraint in constraints] == expected, kind


def test_some_constrained_and_some_free_run_together() -> None:
    ours, vocabulary = model("e2b-mm"), model("e2b-mm").config.text_config.vocab_size
    made = requests("e2b-mm", 6)
    free = [alone(ours, options) for options in made]
    held = [alone(ours, options | {"constraint": Residues(vocabulary)}) for options in made]
    both = [options | ({"constraint": Residues(vocabulary)} if i % 2 else {}) for i, options in enumerate(made)]
    expected = [held[i] if i % 2 else free[i] for i in range(len(made))]
    assert [answer.tokens for answer in answers(ours, both, 2)] == expected


class Chains(Residues):
    """Leaves no choice but at every fifth id, and says so."""

    says = True

    def _next(self, count: int) -> int:
        return 5 + (3 * count + sum(self.taken[: count - count % 5 + 1])) % 40

    def mask(self) -> np.ndarray:
        if len(self.taken) % 5 == 0:
            return super().mask()
        mask, token = np.zeros(-(-self.vocabulary // 32), np.uint32), self._next(len(self.taken))
        mask[token // 32] = 1 << token % 32
        return mask

    def forced(self) -> list[int]:
        count = len(self.taken)
        return [self._next(i) for i in range(count, count - count % 5 + 5)] if count % 5 and self.says else []


def test_ids_without_a_choice_take_no_step_each() -> None:
    ours = model("dense-mm")
    vocabulary = ours.config.text_config.vocab_size
    made: list[dict[str, Any]] = [
        {"prompt_tokens": [5, 6, 7 + number], "max_new_tokens": 14, "stop_ids": ()} for number in range(2)
    ]
    found = {}
    for says in (False, True):
        Chains.says = says
        with Scheduler(ours, 1, CONTEXT) as scheduler:
            running = [scheduler.submit(Request(**options, constraint=Chains(vocabulary))) for options in made]
            drain(scheduler)
            found[says] = [one.answer for one in running], scheduler.stats().steps
    assert [one.tokens for one in found[True][0]] == [one.tokens for one in found[False][0]]
    for one, other in zip(found[True][0], found[False][0], strict=True):
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert found[True][1] < 0.6 * found[False][1]


def test_an_unknown_drafter_and_a_specification_that_nobody_builds_end_one_request() -> None:
    ours = model("dense-mm")
    with pytest.raises(PluginError, match="lookup"):
        ours.generate([5, 6], 3, draft="lokup")
    with pytest.raises(InputError, match="constraint"):
        ours.generate([5, 6], 3, constraint={"regex": "a"})
    with Scheduler(ours, 2, CONTEXT) as scheduler:
        bad = [scheduler.submit(Request(prompt_tokens=[5, 6], max_new_tokens=3, **options))
               for options in ({"draft": "lokup"}, {"constraint": {"regex": "a"}})]
        good = scheduler.submit(Request(prompt_tokens=[5, 6], max_new_tokens=3, stop_ids=()))
        drain(scheduler)
    assert all(one.answer.finish_reason == "cancelled" and one.answer.error for one in bad)
    assert good.answer.tokens == alone(ours, {"prompt_tokens": [5, 6], "max_new_tokens": 3, "stop_ids": ()})
