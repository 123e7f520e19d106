"""Stored tensors against the config: everything is counted, the first few are named, nothing is read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gemma4_core import registry
from gemma4_core.checkpoint import check_tensors
from gemma4_core.config import expected_text_tensors, ignorable, preset_config
from gemma4_core.contracts import TensorInfo
from gemma4_core.errors import CheckpointError

CONFIG = preset_config("tiny-e2b")
Infos = dict[str, TensorInfo]


def stored(dtype: str = "BF16") -> Infos:
    return {name: TensorInfo(dtype, shape, 0) for name, shape in expected_text_tensors(CONFIG).items()}


def nothing(name: str) -> bool:
    return False


def refused(infos: Infos) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        check_tensors(CONFIG, infos, {}, nothing, "folder")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return caught.value


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_fitting_checkpoint(dtype: str) -> None:
    check_tensors(CONFIG, stored(dtype), {}, nothing)


def test_other_types_are_those_of_formats_that_quantise() -> None:
    integers = stored("I8")
    assert "of another dtype" in str(refused(integers))
    rounded = {name: replace(info, rounding=0.004) for name, info in integers.items()}
    check_tensors(CONFIG, rounded, {}, nothing)


def test_missing_tensors_are_counted_and_named() -> None:
    infos = stored()
    gone = [name for name in infos if ".layers.1." in name]
    for name in gone:
        del infos[name]
    fault = refused(infos)
    assert f"{len(gone)} missing" in str(fault) and gone[0] in str(fault) and "folder" in str(fault)
    assert len(fault.faults) == len(gone) and "GEMMA4_DEBUG" in str(fault)


def test_every_kind_of_fault_is_shown() -> None:
    infos = stored()
    names = list(infos)
    del infos[names[1]]
    infos[names[2]] = TensorInfo("BF16", (7,), 14)
    infos[names[3]] = TensorInfo("I64", infos[names[3]].shape, 8)
    infos["model.extra"] = TensorInfo("BF16", (1,), 2)
    fault = refused(infos)
    assert "1 missing, 1 of another shape, 1 of another dtype, 1 unexpected" in str(fault)
    assert names[1] in str(fault) and names[2] in str(fault) and names[3] in str(fault)
    assert len(fault.faults) == 4 and any("model.extra" in text for text in fault.faults)


def test_shape_fault_shows_both_shapes() -> None:
    infos = stored()
    name = "model.language_model.embed_tokens.weight"
    infos[name] = TensorInfo("BF16", (500, 64), 0)
    assert "[500, 64]" in str(refused(infos)) and "[512, 64]" in str(refused(infos))


def test_towers_count_only_where_they_are_asked_for() -> None:
    vision = registry.modalities["vision"].tensors(CONFIG)
    infos = stored() | {name: TensorInfo("BF16", shape, 0) for name, shape in vision.items()}
    assert f"{len(vision)} unexpected" in str(refused(infos))
    check_tensors(CONFIG, infos, {}, vision.__contains__)
    check_tensors(CONFIG, infos, vision, nothing)
    del infos["model.embed_vision.embedding_projection.weight"]
    with pytest.raises(CheckpointError, match="embed_vision"):
        check_tensors(CONFIG, infos, vision, nothing)


def test_unused_keys_and_values_of_shared_layers_are_let_through() -> None:
    infos = stored()
    infos["model.language_model.layers.4.self_attn.k_proj.weight"] = TensorInfo("BF16", (16, 64), 0)
    refused(infos)
    check_tensors(CONFIG, infos, {}, lambda name: ignorable(CONFIG, name))


def test_long_and_odd_names_keep_the_message_short() -> None:
    refused(stored() | {f"bad\n{'x' * 400}{index}": TensorInfo("BF16", (1,), 2) for index in range(5)})
