"""``gemma4 perplexity``: windows, figures against a plain computation, texts and models that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_tools import failure, gemma4, usage
from reference_data import load
from tiny_model import write_tiny_checkpoint
from training_tools import quick

from gemma4_core import InputError, load_pretrained
from gemma4_core.model import GemmaModel
from gemma4_core.quantize import quantize
from gemma4_core.text import prompt_ids
from gemma4_plugins.commands.perplexity import scoring as perplexity

pytestmark = pytest.mark.usefixtures("quickly")
TEXT = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software."


@pytest.fixture(name="quickly")
def _quickly() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model with a tokenizer, and the same in int8."""
    root = tmp_path_factory.mktemp("perplexity")
    return write_tiny_checkpoint(root / "plain"), quantize(root / "plain", root / "int8")


@pytest.fixture(scope="module")
def plain(folders: tuple[Path, Path]) -> GemmaModel:
    return load_pretrained(folders[0], device="cpu", modalities=("text",), dtype="float32")


@pytest.fixture(scope="module")
def packed(folders: tuple[Path, Path]) -> GemmaModel:
    return load_pretrained(folders[1], device="cpu", modalities=("text",), dtype="float32")


@pytest.mark.parametrize("bos", [2, None])
@pytest.mark.parametrize(
    ("count", "context", "stride"), [(2, 8, 4), (8, 8, 4), (9, 8, 4), (50, 8, 4), (50, 8, 8), (50, 8, 1), (7, 2, 1)]
)
def test_every_token_is_scored_once(count: int, context: int, stride: int, bos: int | None) -> None:
    ids = [2, *range(100, 99 + count)] if bos else list(range(100, 100 + count))
    found = list(perplexity.windows(ids, context, stride, bos))
    assert [token for window in found for token in window.ids[-window.scored :]] == ids[1:]
    for number, window in enumerate(found):
        assert len(window.ids) <= context and window.ids[0] == (bos or window.ids[0])
        unseen = len(window.ids) - window.scored
        assert number == 0 or (len(window.ids) == context and unseen >= max(context - stride, 1))


def log_softmax(model: GemmaModel, ids: list[int]) -> np.ndarray:
    logits = model.forward_ids(ids, cache=model.make_cache())[0].numpy()[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_figures_are_those_of_a_plain_computation(
    plain: GemmaModel, packed: GemmaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt_ids(plain.tokenizer, TEXT, plain.config.bos_token_id)
    assert len(ids) > 30
    # three rows of logits at a time
    monkeypatch.setattr(perplexity, "LOGITS", 3 * plain.config.text_config.vocab_size)
    done: list[int] = []
    found = perplexity.figures(perplexity.score(packed, ids, 16, 8, plain, done.append))
    nll, divergence, same = [], [], []
    for window in perplexity.windows(ids, 16, 8, 2):
        mine, other = (log_softmax(model, list(window.ids))[:-1][-window.scored :] for model in (packed, plain))
        rows = np.arange(window.scored)
        targets = list(window.ids)[-window.scored :]
        nll.append(np.stack([-mine[rows, targets], -other[rows, targets]]))
        divergence.append((np.exp(other) * (other - mine)).sum(-1))
        same.append(mine.argmax(-1) == other.argmax(-1))
    mine, other = np.concatenate(nll, axis=1)
    assert sum(done) == found["scored"] == len(mine) == len(ids) - 1 and max(done) <= 3
    error = mine.std(ddof=1) / math.sqrt(len(mine))
    assert found["mean_nll"] == pytest.approx(mine.mean(), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(mine.mean()), rel=1e-4)
    assert found["perplexity_error"] == pytest.approx(math.exp(mine.mean()) * error, rel=1e-3)
    assert found["against_mean_nll"] == pytest.approx(other.mean(), abs=1e-5)
    assert found["nll_change"] == pytest.approx((mine - other).mean(), abs=1e-5)
    every = np.concatenate(divergence)
    assert 0 < found["kl_divergence"] == pytest.approx(every.mean(), abs=2e-6)
    assert found["kl_divergence_max"] == pytest.approx(every.max(), rel=1e-2, abs=1e-5)
    assert found["top1_agreement"] == pytest.approx(np.concatenate(same).mean())


def test_windows_that_run_together_are_scored_as_alone(
    folders: tuple[Path, Path], plain: GemmaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt_ids(plain.tokenizer, TEXT, plain.config.bos_token_id)[:26]
    alone = perplexity.score(plain, ids, 10, 5)
    assert not perplexity.portable(plain)
    with monkeypatch.context() as patch:  # a device that takes one row at a time
        patch.setattr(perplexity, "portable", lambda model: True)
        together = perplexity.score(plain, ids, 10, 5)
    np.testing.assert_array_equal(np.concatenate(together.nll), np.concatenate(alone.nll))
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    model = load_pretrained(folders[0], device="cpu", modalities=("text",), dtype="float32")
    assert perplexity.portable(model)
    found = list(perplexity.windows(ids, 10, 5, 2))
    states = [states for _, [states] in perplexity.with_states([model], found, 4)]
    expected = [states for _, [states] in perplexity.with_states([model], found, 1)]
    assert [len(one) for one in states] == [window.scored for window in found] and len(found) > 3
    for ours, theirs in zip(states, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_model_equals_itself(plain: GemmaModel) -> None:
    found = perplexity.figures(perplexity.score(plain, [2, 7, 8, 9, 10, 11], 64, 32, plain))
    assert abs(found["kl_divergence"]) < 1e-6 and found["top1_agreement"] == 1 and found["nll_change"] == 0


def test_logits_that_are_not_finite_are_refused() -> None:
    scores = perplexity.Scores()
    scores.add([np.array([1.0, 2.0])])
    with pytest.raises(InputError, match="after 2 tokens are not finite"):
        scores.add([np.array([1.0, np.nan])])


def test_command(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    arguments = ("perplexity", "-m", folders[1], "--text", tmp_path / "text", "-c", 32, "--device", "cpu")
    ran = gemma4(*arguments, "--against", folders[0], "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert (found["context"], found["stride"], found["scored"]) == (32, 16, found["tokens"] - 1)
    assert 0 < found["kl_divergence"] < 0.1 and 0.5 < found["top1_agreement"] <= 1
    assert found["perplexity"] == pytest.approx(math.exp(found["mean_nll"]))
    told = gemma4("perplexity", "-m", folders[1], "--text", "-", "-c", 32, "--device", "cpu", stdin=TEXT).out
    assert told.splitlines()[0].startswith(f"perplexity      {found['perplexity']:.4f} ± ") and "KL" not in told


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "no text"), (b" \n\t", "no text"), (b"a", "1 token"), (b"caf\xe9 au lait", "byte 3")]
)
def test_texts_that_are_refused(folders: tuple[Path, Path], tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "text").write_bytes(content)
    line = failure("perplexity", "-m", folders[0], "--text", tmp_path / "text", "--device", "cpu")
    assert says in line and str(tmp_path / "text") in line


def test_faults(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    given = ("perplexity", "-m", folders[0], "--text", tmp_path / "text", "--device", "cpu")
    assert "absent" in failure("perplexity", "-m", folders[0], "--text", tmp_path / "absent")
    assert "no tokenizer" in failure("perplexity", "-m", load("dense").folder, *given[3:])
    assert "vocabulary" in (line := failure(*given, "--against", load("dense").folder)) and "dense" in line
    assert "--context 99999999" in failure(*given, "-c", 99999999)
    assert "--stride 65" in usage(*given, "-c", 64, "--stride", 65)
    assert "'1'" in usage(*given, "-c", 1)
    assert "--text" in usage("perplexity", "-m", folders[0])
    assert "nowhere" in failure(*given, "--against", "nowhere")
