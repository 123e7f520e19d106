"""What a context offers, how often headers are read, and which weights have which role."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_tools import gemma4
from reference_data import load

from gemma4_core import CheckpointError, Context, PluginError, load_pretrained, quantizable, registry
from gemma4_core.checkpoint import CheckpointFiles, opening, shard, write_random_checkpoint
from gemma4_core.checkpoint.context import folder_context, read_context
from gemma4_core.checkpoint.opening import format_for, open_checkpoint
from gemma4_core.checkpoint.roles import Roles
from gemma4_core.config import expected_text_tensors, preset_config


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "model", "tiny-e2b", towers=False, max_shard_bytes=200_000)


def test_headers_are_read_once_for_each_opening(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = shard.read_header
    monkeypatch.setattr(shard, "read_header", lambda file, path: (read.append(path), real(file, path))[1])
    shards = len(list(sharded.glob("*.safetensors")))
    assert shards > 2
    load_pretrained(sharded, device="cpu")
    assert len(read) == len(set(read)) == shards
    read.clear()
    assert gemma4("info", "-m", sharded).code == 0 and len(read) == shards


def test_what_a_context_offers(sharded: Path, tmp_path: Path) -> None:
    context = read_context(sharded)
    assert context.path == context.folder == sharded and context.tensors == CheckpointFiles.open(sharded).infos
    assert context.tensors is context.tensors and context.manifest is None and context.tokenizer_source is None
    (tmp_path / "empty").mkdir()
    for empty in (Context(), Context(path=sharded / "config.json"), folder_context(tmp_path / "empty")):
        assert not empty.tensors
    next(iter(sharded.glob("*.safetensors"))).write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        _ = read_context(sharded).tensors


def test_files_that_were_replaced_are_read_again(sharded: Path) -> None:
    context = read_context(sharded)
    before = dict(context.tensors)
    config = (sharded / "config.json").read_bytes()
    shutil.rmtree(sharded)
    write_random_checkpoint(sharded, "tiny-e2b", towers=False, max_shard_bytes=90_000, dtype="float32")
    (sharded / "config.json").write_bytes(config)
    with open_checkpoint(context) as checkpoint:
        assert {info.dtype for info in checkpoint.infos.values()} == {"F32"}
        name = "model.language_model.norm.weight"
        assert checkpoint.infos[name].shape == before[name].shape
        checkpoint.check([])


def test_the_formats_for_saving_and_quantising_come_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_for("save").name == "bf16" and format_for("quantize").name == "int8"
    assert format_for("save", "INT8").name == "int8" and format_for("quantize", "auto").name == "int8"
    monkeypatch.setattr(opening, "registry", SimpleNamespace(formats={}))
    with pytest.raises(PluginError, match="--format"):
        format_for("save")


def test_roles_and_what_is_worth_quantising() -> None:
    config = preset_config("tiny-26b")
    roles, prefix = Roles(config), "model.language_model."
    found = {name: roles.of(prefix + name, shape) for name, shape in (
        ("embed_tokens.weight", (512, 64)), ("layers.0.mlp.up_proj.weight", (96, 64)), ("norm.weight", (64,)),
        ("layers.0.experts.down_proj", (8, 64, 32)), ("layers.0.router.proj.weight", (8, 64)),
    )}  # fmt: skip
    assert list(found.values()) == ["table", "matrix", "vector", "experts", "matrix"]
    assert [quantizable(name, role) for name, role in found.items()] == [True, True, False, True, False]
    assert roles.of("layers.0.mlp.up_proj.weight", (96, 64)) == "matrix"  # without the modules around it
    config = preset_config("tiny-e2b")
    towers = set(registry.expected_tensors(config)) - set(expected_text_tensors(config))
    assert towers
    for name in towers:
        shape = registry.expected_tensors(config)[name]
        assert not quantizable(name, Roles(preset_config("tiny-e2b")).of(name, shape))


def test_a_checkpoint_closes(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        files = checkpoint.weights.source.files  # type: ignore[attr-defined]
        assert not files.shards[0].file.closed
    assert all(one.file.closed for one in files.shards)
    assert open_checkpoint(load("dense").folder, "BF16").format.name == "bf16"
