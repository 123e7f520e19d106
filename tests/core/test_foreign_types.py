"""Which type a model computes in: what config.json says, in folders of one type and of several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_folders import DATA, Tensors, changed, read, retyped
from tinygrad import dtypes

from gemma4_core import load_pretrained, save_training_checkpoint
from gemma4_core.quantize import quantize
from gemma4_plugins.commands.info import gather, report_lines

pytestmark = pytest.mark.usefixtures("plain_loops")

E2B, MEDIA = DATA / "text" / "e2b", DATA / "multimodal" / "e2b-mm"
PROMPT, ANSWER = [2, 5, 9, 3, 7, 11], [292, 40, 238, 238]
NORM = "model.language_model.norm.weight"
BF16, F32 = dtypes.bfloat16, dtypes.float32


def told(folder: Path) -> dict:  # type: ignore[type-arg]
    """What ``gemma4 info`` says."""
    about = gather(str(folder), None, "auto")
    assert f"computes in {about['dtype']}" in report_lines(about)[0] and about["problem"] is None
    return about


def types(folder: Path) -> set[object]:
    """Every type among a loaded model's tensors; what the model and info say agrees with it."""
    model = load_pretrained(folder, device="cpu")
    found = {tensor.dtype for tensor in model.named_tensors().values()}
    assert told(folder)["dtype"] == {BF16: "bfloat16", F32: "float32"}[model.dtype]
    assert model.dtype in found
    return found


@pytest.mark.parametrize(
    ("declared", "norm", "rest", "expected"),
    [
        ("bfloat16", "F32", "BF16", BF16), ("float32", "BF16", "F32", F32), ("float16", "F16", "F16", BF16),
        ("bfloat16", "F16", "F16", BF16), ("bfloat16", "F32", "F32", BF16), ("float32", "BF16", "BF16", F32),
        ("float16", "F32", "F16", BF16), ("float32", "F16", "F16", F32),
        (None, "F32", "BF16", BF16), (None, "BF16", "F32", F32), (None, "F32", "F16", BF16), (None, "F16", "F32", F32),
    ],
)  # fmt: skip
def test_types_follow_the_config(declared: str | None, norm: str, rest: str, expected: object, tmp_path: Path) -> None:
    change = lambda t: retyped(retyped(t, rest), norm, NORM)  # noqa: E731
    assert types(changed(E2B, tmp_path / "mixed", change, {"dtype": declared}, shards=2)) == {expected}


def test_types_of_older_and_inner_keys_count(tmp_path: Path) -> None:
    whole = {"change": lambda t: retyped(t, "F32")}
    assert types(changed(E2B, tmp_path / "old", config={"dtype": None, "torch_dtype": "float32"})) == {F32}
    inner = changed(E2B, tmp_path / "inner", config={"dtype": None, "text_config.dtype": "bfloat16"}, **whole)
    assert types(inner) == {BF16}
    outer = changed(E2B, tmp_path / "outer", config={"dtype": "float32", "text_config.dtype": "bfloat16"}, **whole)
    assert types(outer) == {F32}


def test_types_count_numbers_and_neither_tensors_nor_bytes(tmp_path: Path) -> None:
    def less_than_half(tensors: Tensors) -> Tensors:
        left = 0.45 * sum(stored.bits.size for stored in tensors.values())
        found = {}
        for name, stored in sorted(tensors.items(), key=lambda item: item[1].bits.size):
            left -= stored.bits.size
            found[name] = stored.to("F32") if left > 0 else stored
        return found

    folder = changed(E2B, tmp_path / "mixed", less_than_half, {"dtype": None})
    wide, narrow = ([s for s in read(folder).values() if s.dtype == dtype] for dtype in ("F32", "BF16"))
    assert len(wide) > len(narrow) and sum(s.bits.nbytes for s in wide) > sum(s.bits.nbytes for s in narrow)
    assert types(folder) == {BF16}


def test_types_of_mixed_folders_give_the_answers_of_whole_ones(tmp_path: Path) -> None:
    mixed = changed(E2B, tmp_path / "mixed", lambda t: retyped(t, "F32", "norm.weight", "q_proj.weight"))
    model, whole = load_pretrained(mixed, device="cpu"), load_pretrained(E2B, device="cpu")
    assert list(model.generate(PROMPT, max_new_tokens=4, temperature=0.0)) == ANSWER
    assert np.array_equal(model.forward_ids(PROMPT)[0].numpy(), whole.forward_ids(PROMPT)[0].numpy())


def test_types_of_fp16_files_keep_their_numbers_in_fp32(tmp_path: Path) -> None:
    fine = lambda t: {n: retyped({n: s}, "F32")[n].to("F16") for n, s in t.items()}  # noqa: E731
    folder = changed(E2B, tmp_path / "half", fine, {"dtype": "float16"})
    table = load_pretrained(folder, device="cpu", dtype="float32").named_tensors()[NORM].numpy()
    assert np.array_equal(table, read(folder)[NORM].bits.astype(np.float32))


def test_types_of_towers_are_those_of_the_model(tmp_path: Path) -> None:
    def towers(tensors: Tensors) -> Tensors:
        return {n: s.to("F32") if "tower" in n or "embed_" in n else s for n, s in tensors.items()}

    folder = changed(MEDIA, tmp_path / "towers", towers, {"vision_config.dtype": "float32"})
    assert types(folder) == {BF16}


def test_types_of_quantized_folders_follow_the_config(tmp_path: Path) -> None:
    mixed = changed(E2B, tmp_path / "mixed", lambda t: retyped(t, "F32", "norm.weight", "embed_tokens.weight"))
    quantize(mixed, tmp_path / "int8")
    assert {s.dtype for s in read(tmp_path / "int8").values()} == {"I8", "BF16", "F32"}
    assert types(tmp_path / "int8") == {BF16, F32, dtypes.int8}  # fp32: the scales
    plain = {n: s.dtype for n, s in read(tmp_path / "int8").items() if not n.endswith("_scale") and s.dtype != "I8"}
    assert set(plain.values()) == {"BF16"}
    undeclared = changed(tmp_path / "int8", tmp_path / "undeclared", lambda t: {
        n: s.to("F32") if n in plain else s for n, s in t.items()}, {"dtype": None})  # fmt: skip
    assert load_pretrained(undeclared, device="cpu").dtype == F32


def test_types_of_saved_folders_are_what_the_model_computed_in(tmp_path: Path) -> None:
    mixed = changed(E2B, tmp_path / "mixed", lambda t: retyped(t, "F32", "norm.weight"), {"dtype": None})
    save_training_checkpoint(load_pretrained(mixed, device="cpu"), tmp_path / "saved")
    assert {stored.dtype for stored in read(tmp_path / "saved").values()} == {"BF16"}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"


def test_info_counts_bytes_of_the_type_that_a_checkpoint_computes_in(tmp_path: Path) -> None:
    wide = changed(E2B, tmp_path / "wide", lambda t: retyped(t, "F32"))
    about, plain = told(wide), told(E2B)
    assert about["stored_dtypes"] == {"F32": 129} and about["file_bytes"] > 1.9 * plain["file_bytes"]
    assert about["weight_bytes"] == plain["weight_bytes"] and about["memory"] == plain["memory"]
