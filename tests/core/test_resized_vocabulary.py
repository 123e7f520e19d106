"""Vocabularies and embedding tables of different sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_folders import DATA, Stored, Tensors, changed

from gemma4_core import ConfigError, GemmaTrainingBatch, InputError, compute_loss, load_pretrained
from gemma4_core.quantize import quantize
from gemma4_plugins.commands.bench.speed import prompt_ids

pytestmark = pytest.mark.usefixtures("plain_loops")

E2B = DATA / "text" / "e2b"
PROMPT, ANSWER = [2, 5, 9, 3, 7, 11], [292, 40, 238, 238]
TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight")
PLE = {"ple": "device"}, {"ple": "host"}, {"ple": "disk"}


def longer(tensors: Tensors, table: str, rows: int) -> Tensors:
    """Rows of zeros below a table."""
    def grown(stored: Stored) -> Stored:
        more = np.zeros((rows, stored.bits.shape[1]), stored.bits.dtype)
        return replace(stored, bits=np.concatenate([stored.bits, more]))

    return {name: grown(stored) if name.endswith(table) else stored for name, stored in tensors.items()}


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary has two more ids than the per-layer table."""
    folder = tmp_path_factory.mktemp("resized") / "e2b"
    return changed(E2B, folder, lambda t: longer(t, TABLES[0], 2), {"text_config.vocab_size": 386})


@pytest.mark.parametrize("options", PLE, ids=lambda o: o["ple"])
def test_resized_vocabulary_opens(resized: Path, options: dict[str, str]) -> None:
    model = load_pretrained(resized, device="cpu", **options)  # type: ignore[arg-type]
    assert list(model.generate(PROMPT, max_new_tokens=4, temperature=0.0)) == ANSWER
    assert model.forward_ids(PROMPT)[0].shape[-1] == 386
    for bad in (384, 385):
        with pytest.raises(InputError, match=f"{bad} is in the vocabulary of 386 and past the per-layer.*384 rows"):
            model.forward_ids([2, bad])
        with pytest.raises(InputError, match="past the per-layer"):
            model.generate([2, bad])
        with pytest.raises(InputError, match="past the per-layer"):
            compute_loss(model, GemmaTrainingBatch([2, 5, bad, 7]))
    with pytest.raises(InputError, match="386 is outside the vocabulary"):
        model.forward_ids([386])
    assert max(prompt_ids(model, 5000)) == 383


@pytest.mark.parametrize("int8", [False, True])
def test_resized_vocabulary_ends_where_an_id_without_a_row_was_chosen(
    resized: Path, int8: bool, tmp_path: Path
) -> None:
    """Such an id may be the last one, or a stop id; going on from it is the error."""
    folder = quantize(resized, tmp_path / "int8") if int8 else changed(resized, tmp_path / "plain")
    others = [token for token in range(386) if token != 385]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "suppress_tokens": others}))
    model = load_pretrained(folder, device="cpu")

    def answer(count: int, **options: Any) -> list[int]:
        return list(model.generate(PROMPT, max_new_tokens=count, temperature=0.0, **options))

    assert answer(1) == [385]
    assert answer(4, stop_ids=[385]) == []
    with pytest.raises(InputError, match="385 is in the vocabulary of 386 and past"):
        answer(4)


def test_resized_vocabulary_below_the_table_opens(tmp_path: Path) -> None:
    folder = changed(E2B, tmp_path / "e2b", lambda t: longer(t, TABLES[1], 2),
                     {"text_config.vocab_size_per_layer_input": 386})  # fmt: skip
    model = load_pretrained(folder, device="cpu")
    assert list(model.generate(PROMPT, max_new_tokens=4, temperature=0.0)) == ANSWER
    with pytest.raises(InputError, match="384 is outside the vocabulary of 384"):
        model.forward_ids([384])


def test_a_pad_id_past_the_table_is_refused(tmp_path: Path) -> None:
    folder = changed(E2B, tmp_path / "e2b", lambda t: longer(t, TABLES[0], 2),
                     {"text_config.vocab_size": 386, "text_config.pad_token_id": 385})  # fmt: skip
    with pytest.raises(ConfigError, match="pad_token_id is 385; it must be below vocab_size_per_layer_input"):
        load_pretrained(folder, device="cpu")
