"""An adapter's folder in place of a model: opens its base with the adapter, or says what to give instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lora_tools import HERE, asked, base_folder, tiny

from gemma4_core import CheckpointError, GemmaMultimodalProcessor, load_pretrained, registry
from gemma4_core.quantize import quantize


def adapter(target: Path, base: object) -> Path:
    """A copy of what peft saved for the dense model, with another name of its base."""
    folder = Path(shutil.copytree(HERE / "dense", target))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    return folder


@pytest.mark.slow
def test_adapter_as_model_opens_its_base_with_the_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", str(base_folder("dense")))
    given = tiny("dense", options={"adapter": [folder]}).forward_ids(**asked("dense"))[0].numpy()
    model = tiny(folder=folder)
    assert model.context.folder == base_folder("dense")
    assert np.array_equal(model.forward_ids(**asked("dense"))[0].numpy(), given)
    twice = tiny(folder=folder, options={"adapter": [folder]})
    assert not np.array_equal(twice.forward_ids(**asked("dense"))[0].numpy(), given)


def test_adapter_as_model_finds_a_base_beside_it_and_the_last_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base_folder("dense"), tmp_path / "base")
    adapter(tmp_path / "run" / "last", "../base")
    monkeypatch.chdir(tmp_path / "run")
    assert tiny(folder=Path("last")).context.folder == Path("../base")
    monkeypatch.chdir("/")
    adapter(tmp_path / "run" / "other", "../../base")
    found = tiny(folder=tmp_path / "run" / "other").context.folder
    assert found is not None and found.samefile(tmp_path / "base")
    adapter(tmp_path / "runs" / "last", str(tmp_path / "base"))
    assert tiny(folder=tmp_path / "runs").context.folder == tmp_path / "base"


@pytest.mark.parametrize("base", ["gone/away", "", None])
def test_adapter_as_model_without_its_base_says_what_to_give(base: object, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "my adapter", base)
    with pytest.raises(CheckpointError, match=r"-m BASE --adapter '.*my adapter'") as caught:
        load_pretrained(folder)
    text = str(caught.value)
    assert len(text) < 500 and "\n" not in text and (not base or "gone/away" in text)


def test_adapter_as_model_is_no_checkpoint_for_what_writes_or_reads_one(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", str(base_folder("dense")))
    processor = GemmaMultimodalProcessor.from_pretrained
    for opening in (lambda: quantize(folder, tmp_path / "out"), lambda: processor(folder)):
        with pytest.raises(CheckpointError, match=f"not a checkpoint.*-m {base_folder('dense')} --adapter {folder}"):
            opening()


def test_adapter_as_model_without_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "adapter", "dense")
    monkeypatch.setattr(registry, "transforms", {})
    with pytest.raises(CheckpointError, match=r"is an adapter .adapter_config.json.*no plugin that applies it"):
        load_pretrained(folder)
