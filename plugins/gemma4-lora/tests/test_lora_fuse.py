"""``gemma4 fuse``: what it writes is base plus adapter, whole or not at all; and ``generate --adapter``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_tools import failure, gemma4
from click.testing import CliRunner
from gemma4_lora import Adapters, fuse
from gemma4_lora.command import fuse_command
from gemma4_lora.files import Pair, read_adapter, save_adapter
from lora_tools import HERE, base_folder, logits, stored, stored_logits, tiny
from reference_data import read_header, relative_error
from safetensors.numpy import load_file

from gemma4_core import Gemma4Error, save_training_checkpoint
from gemma4_core.config import load_config
from gemma4_core.quantize import quantize


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_fused_folder_is_base_plus_adapter(name: str, tmp_path: Path) -> None:
    fuse(base_folder(name), [HERE / name], tmp_path / "fused", dtype="float32")
    model = tiny(name, tmp_path / "fused")
    assert relative_error(logits(model, name), stored_logits(name)) < 1e-4
    base, fused = (read_header(folder / "model.safetensors") for folder in (base_folder(name), tmp_path / "fused"))
    assert {key: entry["shape"] for key, entry in fused.items()} == {key: e["shape"] for key, e in base.items()}
    assert {entry["dtype"] for entry in fused.values()} == {"F32"}
    assert json.loads((tmp_path / "fused" / "config.json").read_text())["dtype"] == "float32"
    assert not list(tmp_path.glob(".*"))


def test_memory_and_disk_hold_the_same_bf16_numbers(tmp_path: Path) -> None:
    fuse(base_folder("dense"), [HERE / "dense"], tmp_path / "fused")
    merged, loaded = tiny(dtype=None, options={"adapter": str(HERE / "dense")}), tiny(
        folder=tmp_path / "fused", dtype=None
    )
    assert Adapters.of(merged).merged
    written = loaded.named_tensors()
    for name, tensor in merged.named_tensors().items():
        mine, theirs = tensor.float().numpy(), written[name].float().numpy()
        assert np.abs(mine - theirs).max() <= np.abs(theirs).max() * 2**-8
        assert (mine == theirs).mean() > 0.999


@pytest.mark.parametrize("mode", ["merged", "beside"])
def test_an_adapted_model_is_saved_as_the_fused_one(mode: str, tmp_path: Path) -> None:
    fuse(base_folder("e2b-mm"), [HERE / "e2b-mm"], tmp_path / "fused", dtype="float32")
    model = tiny("e2b-mm", options={"adapter": str(HERE / "e2b-mm"), "adapter_mode": mode})
    save_training_checkpoint(model, tmp_path / "saved")
    saved, fused = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "fused"))
    assert saved.keys() == fused.keys()
    assert all(np.allclose(saved[name], fused[name], atol=1e-5) for name in fused)


def test_several_adapters_and_a_strength_add_up(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    fuse(base_folder("dense"), [HERE / "dense"], once, dtype="float32", strength=2.0)
    fuse(base_folder("dense"), [HERE / "dense", HERE / "dense"], twice, dtype="float32")
    one, two = (load_file(folder / "model.safetensors") for folder in (once, twice))
    assert all(np.allclose(one[name], two[name], atol=1e-6) for name in one)


@pytest.mark.slow
def test_an_int8_base_is_quantised_again_or_made_ordinary(tmp_path: Path) -> None:
    packed = quantize(base_folder("dense"), tmp_path / "packed")
    fuse(packed, [HERE / "dense"], tmp_path / "again")
    fuse(packed, [HERE / "dense"], tmp_path / "ordinary", format="bf16", dtype="float32")
    before, after = stored(packed), stored(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert before.keys() == after.keys() and len(config["gemma4_format"]["tensors"]) > 20
    changed = {name.removesuffix("_scale") for name in before if before[name] != after[name]}
    expected = {name for name in before if name.endswith((".q_proj.weight", ".k_proj.weight", "mlp.down_proj.weight"))}
    assert changed == expected and len(changed) == 18
    model = tiny(folder=packed)
    Adapters.of(model).load("x", HERE / "dense")
    Adapters.of(model).activate("x", mode="beside")
    wanted = logits(model)
    Adapters.of(model).activate("x", mode="merged")
    exact = np.abs(wanted).max()
    assert np.abs(logits(model) - wanted).max() < 1e-3 * exact
    assert np.abs(logits(tiny(folder=tmp_path / "ordinary")) - wanted).max() < 1e-3 * exact
    assert relative_error(logits(tiny(folder=tmp_path / "again")), wanted) < 0.3


# ------------------------------------------------------------------------------------------------ commands


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(fuse_command, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_the_folder_and_replaces_a_checkpoint_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "fused"
    base = shutil.copytree(base_folder("dense"), tmp_path / "base", ignore=shutil.ignore_patterns("config_flat.json"))
    shutil.copytree(base, out)
    (out / "tokenizer.model").write_text("of the checkpoint that was there")
    args = ("-m", base, "--adapter", HERE / "dense", HERE / "dense", "--out", out)
    assert "--overwrite" in failure("fuse", *args) and (out / "tokenizer.model").exists()
    code, printed, error = run(*args, "--overwrite")
    assert (code, printed, error) == (0, f"{out}\n", "") and not (out / "tokenizer.model").exists()


def test_foreign_files_are_never_replaced_by_fuse(tmp_path: Path) -> None:
    out = shutil.copytree(base_folder("dense"), tmp_path / "out")
    (out / "thesis.txt").write_text("years of work")
    for more in ([], ["--overwrite"]):
        args = ["-m", base_folder("dense"), "--adapter", HERE / "dense", "--out", out, *more]
        assert "thesis.txt" in failure("fuse", *args)
    assert (out / "thesis.txt").read_text() == "years of work" and not list(tmp_path.glob(".*"))
    adapter = shutil.copytree(HERE / "dense", tmp_path / "adapter")
    (adapter / "notes.md").write_text("x")
    with pytest.raises(Gemma4Error, match=r"notes\.md"):
        save_adapter(adapter, read_adapter(adapter, load_config(base_folder("dense"))))
    assert (adapter / "notes.md").exists()


@pytest.mark.parametrize("value", ["1" + "0" * 400, "NaN", "1e999", "true", "-Infinity", "9" * 5000])
@pytest.mark.parametrize("key", ["lora_alpha", "r"])
def test_numbers_of_an_adapter(tmp_path: Path, key: str, value: str) -> None:
    folder = shutil.copytree(HERE / "dense", tmp_path / "adapter")
    data = json.loads((folder / "adapter_config.json").read_text())
    text = json.dumps(data | {key: "HERE"}).replace('"HERE"', value)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(Gemma4Error) as caught:
        read_adapter(folder, load_config(base_folder("dense")))
    line = str(caught.value)
    assert "adapter_config.json" in line and f'"{key}"' in line and len(line) < 500 and "\n" not in line


def test_what_cannot_be_fused_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    mine, base, adapter = tmp_path / "mine", base_folder("dense"), HERE / "dense"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    out = tmp_path / "out"
    cut = Path(shutil.copytree(adapter, tmp_path / "cut"))
    (cut / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes()[:-9])
    for args, says in (
        (("-m", base, "--adapter", tmp_path / "no", "--out", out), "no"),
        (("-m", base, "--adapter", cut, "--out", out), "cut"),
        (("-m", base, "--adapter", HERE / "moe", "--out", out), "do not fit"),
        (("-m", base, "--adapter", adapter, "--out", mine), "mine"),
        (("-m", base, "--adapter", adapter, "--out", base), "itself"),
        (("-m", tmp_path / "nowhere", "--adapter", adapter, "--out", out), "nowhere"),
        (("-m", base, "--adapter", adapter, "--out", out, "--format", "int9"), "int9"),
        (("-m", base, "--adapter", adapter, "--out", out / "x" / "y", "--strength", "1e9"), ""),
    ):
        code, printed, error = run(*args)
        if says:
            assert (code, printed) == (1, "") and says in error and error.count("\n") == 1 and len(error) < 500
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    code, _, error = run("-m", base, "--out", out)
    assert code == 2 and "--adapter" in error
    with pytest.raises(Gemma4Error, match="at least one"):
        fuse(base, [], out)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma4_core.checkpoint.rewrite.SHARD_BYTES", 100_000)
    with monkeypatch.context() as patch:
        real, calls = Pair.rows, []

        def fail_late(pair: Pair, index: np.ndarray) -> np.ndarray:
            calls.append(pair)
            if len(calls) == 12:
                raise KeyboardInterrupt
            return real(pair, index)

        patch.setattr(Pair, "rows", fail_late)
        with pytest.raises(KeyboardInterrupt):
            fuse(base_folder("dense"), [HERE / "dense"], tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists() and list((tmp_path / ".out.fusing/finished").glob("model-00002-of-*"))
    fuse(base_folder("dense"), [HERE / "dense"], tmp_path / "out", dtype="float32")
    parts = len(json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"])
    assert parts > 50 and relative_error(logits(tiny(folder=tmp_path / "out")), stored_logits("dense")) < 1e-4
    assert not (tmp_path / ".out.fusing").exists()


def test_generate_takes_an_adapter(tmp_path: Path) -> None:
    fuse(base_folder("dense"), [HERE / "dense"], tmp_path / "fused")
    args = ("--prompt-tokens", "12,40,77,9", "-n", "6", "--temperature", "0", "--device", "cpu", "--json")
    answers = []
    for model, options in (
        (base_folder("dense"), ("--adapter", HERE / "dense")), (tmp_path / "fused", ()), (base_folder("dense"), ()),
    ):  # fmt: skip
        ran = gemma4("generate", "-m", model, *args, *options)
        assert ran.code == 0 and ran.err == "", ran.err
        answers.append(json.loads(ran.out)["tokens"])
    assert answers[0] == answers[1] != answers[2]
    assert "nowhere" in failure("generate", "-m", base_folder("dense"), *args, "--adapter", tmp_path / "nowhere")
    # options that describe a new adapter are for training only
    ran = gemma4("generate", "-m", base_folder("dense"), *args, "--lora-rank", "4")
    assert ran.code == 2 and "No such option '--lora-rank'" in ran.err
    assert "--lora-rank" in gemma4("train", "--help").out and "--lora" not in gemma4("generate", "--help").out
