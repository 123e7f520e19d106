"""Folders whose tensors have other names, stored copies, and buffers beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign_folders import DATA, Stored, Tensors, changed, other, read

from gemma4_core import CheckpointError, load_pretrained, save_training_checkpoint
from gemma4_core.checkpoint.context import read_context
from gemma4_core.quantize import quantize
from gemma4_plugins.commands.doctor.verification import check_files

pytestmark = pytest.mark.usefixtures("plain_loops")

E2B, DENSE, MOE = (DATA / "text" / name for name in ("e2b", "dense", "moe"))
TEXT_ONLY, MEDIA = DATA / "text" / "e4b-text", DATA / "multimodal" / "e2b-mm"
PROMPT = [2, 5, 9, 3, 7, 11]
TABLE = "model.language_model.embed_tokens.weight"
ANSWERS = {"e2b": [292, 40, 238, 238], "dense": [11, 11, 11, 72], "e2b-mm": [41, 101, 110, 83]}


def answer(folder: Path) -> list[int]:
    model = load_pretrained(folder, device="cpu")
    return list(model.generate(PROMPT, max_new_tokens=4, temperature=0.0))


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): stored for name, stored in tensors.items()}


def bare(name: str) -> str:
    """As ``AutoModel`` saves it."""
    return name.removeprefix("model.")


def inner(name: str) -> str:
    """As ``model.language_model.save_pretrained`` names the text model's."""
    return name.removeprefix("model.language_model.")


def mixed(name: str) -> str:
    """Some with and some without the text model's module."""
    return name.replace("model.language_model.", "model.") if ".layers.1." in name else name


SPELLINGS = {
    "AutoModel": bare,
    "text model": inner,
    "mixed": mixed,
    "older": lambda name: name.replace("model.language_model.", "language_model.model."),
    "compiled": lambda name: "_orig_mod." + name.replace("self_attn.", "self_attn._orig_mod."),
    "wrapped": lambda name: "module." + name,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("source", [E2B, DENSE, MOE, MEDIA], ids=lambda path: path.name)
def test_bare_names_open(source: Path, spelling: str, tmp_path: Path) -> None:
    folder = changed(source, tmp_path / "bare", renamed(SPELLINGS[spelling]))
    found, known = (load_pretrained(one, device="cpu").named_tensors() for one in (folder, source))
    assert found.keys() == known.keys()
    for name in (TABLE, "model.language_model.layers.1.self_attn.q_norm.weight", *list(known)[-3:]):
        assert np.array_equal(found[name].numpy(), known[name].numpy())
    if spelling == "AutoModel":
        assert answer(folder) == ANSWERS.get(source.name) or source == MOE


def test_bare_names_of_a_text_only_checkpoint_open(tmp_path: Path) -> None:
    for number, start in enumerate(("", "model.language_model.", "language_model.")):
        folder = changed(TEXT_ONLY, tmp_path / str(number), renamed(lambda n, start=start: n.replace("model.", start)))
        assert answer(folder) == answer(TEXT_ONLY)


def test_bare_names_are_kept_when_saved_and_released_when_quantized(tmp_path: Path) -> None:
    folder = changed(MEDIA, tmp_path / "bare", renamed(bare))
    model = load_pretrained(folder, device="cpu", modalities=("text",))
    save_training_checkpoint(model, tmp_path / "saved")
    assert read(tmp_path / "saved").keys() == read(folder).keys()
    save_training_checkpoint(model, tmp_path / "int8", quantize="int8")
    assert set(read(folder)) <= set(read(tmp_path / "int8"))
    quantize(folder, tmp_path / "released")
    quantize(MEDIA, tmp_path / "plain")
    assert read(tmp_path / "released").keys() == read(tmp_path / "plain").keys()
    assert answer(tmp_path / "int8") == answer(tmp_path / "released") == answer(tmp_path / "plain")
    assert answer(tmp_path / "saved") == ANSWERS["e2b-mm"]


def test_names_of_nothing_are_errors_as_they_are_spelt(tmp_path: Path) -> None:
    for number, name in enumerate(("layers.0.foo.weight", "model.extra.weight", "lm_head.bias")):
        folder = changed(E2B, tmp_path / str(number), lambda t, name=name: {**t, name: t[TABLE]})
        with pytest.raises(CheckpointError, match=f'1 unexpected.*"{name}"'):
            load_pretrained(folder, device="cpu")


HEADS = ("lm_head.weight", "model.lm_head.weight", "language_model.lm_head.weight",
         "model.language_model.lm_head.weight")  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_stored_head_opens(name: str, dtype: str, tmp_path: Path) -> None:
    folder = changed(E2B, tmp_path / "head", lambda t: {**t, name: t[TABLE].to(dtype)}, shards=2)
    assert answer(folder) == ANSWERS["e2b"]
    assert len(load_pretrained(folder, device="cpu").named_tensors()) == 129


def test_stored_head_that_stands_for_the_table_opens(tmp_path: Path) -> None:
    folder = changed(E2B, tmp_path / "head", lambda t: {"lm_head.weight" if n == TABLE else n: s for n, s in t.items()})
    assert answer(folder) == ANSWERS["e2b"]


def test_stored_head_in_more_detail_than_the_table_opens(tmp_path: Path) -> None:
    def fine(tensors: Tensors) -> Tensors:
        head = tensors[TABLE].to("F32")
        return {**tensors, "lm_head.weight": replace(head, bits=head.bits * np.float32(1 + 2**-10))}

    assert answer(changed(E2B, tmp_path / "head", fine)) == ANSWERS["e2b"]


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
def test_stored_head_that_differs_is_refused(dtype: str, tmp_path: Path) -> None:
    def untied(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": other(tensors[TABLE].to("F32")).to(dtype)}

    folder = changed(E2B, tmp_path / "head", untied)
    for opening in (
        lambda: load_pretrained(folder, device="cpu"),
        lambda: quantize(folder, tmp_path / "out"),
        lambda: list(check_files(read_context(folder), None, "auto")),
    ):
        with pytest.raises(CheckpointError, match=r'"lm_head.weight" differs from "model.*row 383.*untied head'):
            opening()


def test_stored_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = changed(E2B, tmp_path / "h", lambda t: {**t, "lm_head.weight": Stored(t[TABLE].bits[:-2], "BF16")})
    with pytest.raises(CheckpointError, match=r"lm_head.weight.*differs.*in shape \(\[382"):
        load_pretrained(folder, device="cpu")


def test_stored_head_of_an_int8_folder_opens(tmp_path: Path) -> None:
    quantize(E2B, tmp_path / "int8")
    plain = read(E2B)[TABLE]
    packed = read(tmp_path / "int8")
    whole = changed(tmp_path / "int8", tmp_path / "packed", lambda t: {
        **t, "lm_head.weight": packed[TABLE], "lm_head.weight_scale": packed[TABLE + "_scale"]},
        {"gemma4_format": None})  # fmt: skip
    ordinary = changed(tmp_path / "int8", tmp_path / "ordinary", lambda t: {**t, "lm_head.weight": plain})
    assert answer(whole) == answer(ordinary) == answer(tmp_path / "int8")
    wrong = changed(tmp_path / "int8", tmp_path / "wrong", lambda t: {**t, "lm_head.weight": other(plain.to("F32"))})
    with pytest.raises(CheckpointError, match="untied head"):
        load_pretrained(wrong, device="cpu")


def test_stored_head_is_written_by_nobody(tmp_path: Path) -> None:
    folder = changed(E2B, tmp_path / "head", lambda t: {**t, "lm_head.weight": t[TABLE]})
    quantize(folder, tmp_path / "int8")
    save_training_checkpoint(load_pretrained(folder, device="cpu"), tmp_path / "saved")
    for written in ("int8", "saved"):
        assert "lm_head.weight" not in read(tmp_path / written)
    assert read(tmp_path / "saved").keys() == read(E2B).keys()


def test_the_same_tensor_twice_opens_only_where_both_are_equal(tmp_path: Path) -> None:
    for number, end in enumerate(("layers.0.mlp.up_proj.weight", "norm.weight")):
        name, twin = f"model.language_model.{end}", f"model.{end}"
        folder = changed(E2B, tmp_path / f"equal{number}", lambda t, n=name, w=twin: {w: t[n], **t})
        assert answer(folder) == ANSWERS["e2b"]
        folder = changed(E2B, tmp_path / f"other{number}", lambda t, n=name, w=twin: {
            **t, w: replace(t[n], bits=t[n].bits + np.uint16(64))})  # fmt: skip
        with pytest.raises(CheckpointError, match=f'"{twin}" differs from "{name}".*remove one'):
            load_pretrained(folder, device="cpu")


BUFFERS = (
    "model.language_model.rotary_emb.inv_freq", "model.language_model.rotary_emb.sliding_attention_inv_freq",
    "model.language_model.rotary_emb.full_attention_original_inv_freq", "rotary_emb.original_inv_freq",
    "model.language_model.layers.0.self_attn.rotary_emb.inv_freq", "layers.0.self_attn.rotary_emb.cos_cached",
    "model.language_model.embed_tokens.embed_scale", "model.language_model.embed_tokens_per_layer.embed_scale",
    "model.vision_tower.encoder.rotary_emb.inv_freq", "model.vision_tower.embeddings.position_ids",
    "model.audio_tower.layers.0.self_attn.softcap", "model.audio_tower.rel_pos_enc.inv_timescales",
    "model.language_model.per_layer_input_scale",
)  # fmt: skip


@pytest.mark.parametrize("source", [E2B, MEDIA], ids=lambda path: path.name)
def test_derived_buffers_are_ignored(source: Path, tmp_path: Path) -> None:
    kinds = [Stored(np.arange(4, dtype=np.float32), "F32"), Stored(np.arange(4, dtype=np.int64), "I64"),
             Stored(np.ones((), np.float32), "F32")]  # fmt: skip
    buffers = {name: kinds[number % 3] for number, name in enumerate(BUFFERS)}
    folder = changed(source, tmp_path / "buffers", lambda t: {**buffers, **t})
    assert answer(folder) == ANSWERS[source.name]
    quantize(folder, tmp_path / "int8")
    assert not BUFFERS & read(tmp_path / "int8").keys()
