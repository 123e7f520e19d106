"""Adapters attached to one model: switched, added up, taken away, without loading the base again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma4_lora import Adapters, fresh_adapter
from gemma4_lora.files import AdapterFiles, Pair
from gemma4_lora.names import adaptable
from lora_tools import HERE, logits, tiny
from reference_data import load

from gemma4_core import Gemma4Error, GemmaModel

IDS = load("dense").ids[1].tolist()[:16]


def another(model: GemmaModel, targets: tuple[str, ...] = ("o_proj", "down_proj")) -> AdapterFiles:
    """An adapter that changes much, even where the stored one changes nothing."""
    files = fresh_adapter(adaptable(model.config), model.config.text_prefix, rank=2, targets=targets, seed=5)
    random = np.random.default_rng(3)
    drawn = {name: random.normal(0, 0.2, pair.b.shape).astype(np.float32) for name, pair in files.pairs.items()}
    return AdapterFiles(files.config, {name: Pair(files.pairs[name].a, b, 1.0) for name, b in drawn.items()})


def tokens(model: GemmaModel, cache: Any = None) -> list[int]:
    return list(model.generate(IDS, max_new_tokens=6, stop_ids=(), cache=cache))


def with_two(model: GemmaModel) -> Adapters:
    adapters = Adapters.of(model)
    adapters.load("one", HERE / "dense")
    adapters.add("two", another(model))
    return adapters


def test_switching_back_and_forth_gives_each_its_own_answer_whatever_a_cache_holds() -> None:
    model = tiny()
    cache = model.make_cache()
    adapters, base = with_two(model), tokens(model, cache)
    assert Adapters.of(model) is adapters and repr(adapters) == "<Adapters: one, two>"
    answers: dict[str, list[int]] = {}
    for name in ("one", "two", "one", "two", "one"):
        adapters.activate(name, mode="merged")
        warm = tokens(model, cache)
        assert warm == tokens(model) == answers.setdefault(name, warm)
    assert len({*map(tuple, answers.values()), tuple(base)}) == 3 and list(adapters.active) == ["one"]
    adapters.deactivate()
    assert tokens(model, cache) == tokens(model) == base and not adapters.active


def test_switching_merged_ones_captures_nothing_anew() -> None:
    model = tiny()
    adapters, cache = with_two(model), model.make_cache()
    for name in ("one", "two"):
        adapters.activate(name, mode="merged")
        tokens(model, cache)
    assert cache.storage is not None
    graphs = dict(cache.storage.graphs)
    for name in ("one", "two"):
        adapters.activate(name, mode="merged")
        tokens(model, cache)
    assert graphs and dict(cache.storage.graphs) == graphs


def test_an_attached_adapter_that_is_not_active_leaves_no_trace() -> None:
    model = tiny()
    held = {name: place.matrix for name, place in model.places.items()}
    adapters = with_two(model)
    adapters.activate("one", mode="merged")
    adapters.activate("two", mode="beside")
    adapters.deactivate()
    assert all(place.matrix is held[name] for name, place in model.places.items()) and not adapters.merged


def test_both_ways_add_up_and_take_a_strength() -> None:
    model = tiny()
    adapters = with_two(model)
    for names, strength in ((("one", "two"), 1.0), (("two",), -0.5)):
        found = []
        for mode in ("merged", "beside"):
            adapters.activate(*names, strength=strength, mode=mode)
            assert adapters.merged == (mode == "merged")
            found.append(logits(model))
        spread = float(found[0].std())
        assert np.abs(found[0] - found[1]).max() < 1e-4 * spread
    adapters.remove("two")
    assert list(adapters.loaded) == ["one"] and not adapters.active


def test_what_is_saved_is_what_was_loaded(tmp_path: Path) -> None:
    model = tiny()
    adapters = with_two(model)
    adapters.save("one", tmp_path / "again")
    mine = (tmp_path / "again" / "adapter_model.safetensors").read_bytes()
    other = tiny()
    Adapters.of(other).load("x", tmp_path / "again")
    Adapters.of(other).save("x", tmp_path / "once more")
    assert (tmp_path / "once more" / "adapter_model.safetensors").read_bytes() == mine


def test_a_model_with_its_towers_left_out_takes_what_is_for_its_text() -> None:
    model = tiny("e2b-mm", modalities=("text",))
    loaded = Adapters.of(model).load("theirs", HERE / "e2b-mm")
    assert loaded.changes and all("language_model" in name for name in loaded.changes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda a: a.activate("three"), '"three"'), (lambda a: a.activate("one", mode="fast"), '"fast"'),
        (lambda a: a.activate("one", strength=float("nan")), "NaN"), (lambda a: a.load("one", HERE / "dense"), '"one"'),
        (lambda a: a.remove("x"), '"x"'), (lambda a: a.save("x", "y"), '"x"'),
        (lambda a: a.load("new", HERE / "moe"), "do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_and_changes_nothing(call: Any, says: str) -> None:
    adapters = Adapters.of(tiny())
    adapters.load("one", HERE / "dense")
    with pytest.raises(Gemma4Error) as caught:
        call(adapters)
    assert says in str(caught.value) and len(str(caught.value)) < 500
    assert list(adapters.loaded) == ["one"] and not adapters.active
