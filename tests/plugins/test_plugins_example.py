"""The example distribution, built, installed and listed beside a broken one; and each of its parts by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from example_plugins import EXAMPLE, Installed, installed_fixture  # noqa: F401

from gemma4_core import (
    CheckpointError,
    Context,
    DeviceSettings,
    Gemma4Error,
    InputError,
    PluginManager,
    Registry,
    TokenizerError,
    registry,
)
from gemma4_core.checkpoint.blocks import blocks_of
from gemma4_core.devices import activate

sys.path.append(str(EXAMPLE / "src"))

from gemma4_example import byte_tokenizer, dots, echo, events, npz, one_core, one_of, scale, signum


@pytest.fixture(name="cpu", scope="module")
def cpu_fixture() -> None:
    """tinygrad's CPU with a compiler that the cpu plugin finds."""
    activate("cpu", DeviceSettings())


PARTS = {
    "npz": npz, "dots": dots, "bytes": byte_tokenizer, "one-core": one_core, "signum": signum, "scale": scale,
    "echo": echo, "one-of": one_of, "events": events,
}  # fmt: skip
KINDS = {
    "npz": "format", "dots": "modality", "bytes": "tokenizer", "one-core": "device", "signum": "optimizer",
    "scale": "transform", "echo": "drafter", "one-of": "constraint", "events": "callback", "hello": "command",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ installed


def rows(installed: Installed, **variables: str) -> list[dict[str, Any]]:
    done = installed.gemma4("plugins", "--json", **variables)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


def test_the_example_has_one_plugin_of_each_kind(installed: Installed) -> None:
    found = {row["name"]: row for row in rows(installed) if row["distribution"] == "gemma4-example"}
    assert {name: row["kind"] for name, row in found.items()} == KINDS
    assert {row["status"] for row in found.values()} == {"loaded"}
    assert {row["version"] for row in found.values()} == {"1.0.0"}
    assert all(row["summary"] and row["error"] is None for row in found.values())


def test_the_broken_one_is_a_row_and_harms_nothing(installed: Installed) -> None:
    [broken] = [row for row in rows(installed) if row["distribution"] == "gemma4-broken"]
    assert (broken["name"], broken["kind"], broken["status"], broken["version"]) == ("broken", None, "failed", "0.3.0")
    assert "a_module_that_nobody_has" in broken["error"]
    done = installed.gemma4("--help")
    assert done.returncode == 0 and "hello" in done.stdout and done.stderr == ""


def test_the_command_of_the_example_runs(installed: Installed) -> None:
    done = installed.gemma4("hello", "--name", "world")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello world! Formats: ") and "npz" in done.stdout


def test_blocking_leaves_the_others(installed: Installed) -> None:
    found = {row["name"]: row["status"] for row in rows(installed, GEMMA4_DISABLE_PLUGINS="NPZ,broken")}
    assert (found["npz"], found["broken"], found["signum"]) == ("blocked", "blocked", "loaded")


def test_listing_imports_no_tinygrad(installed: Installed) -> None:
    done = installed.run("-c", "import sys; from gemma4_core import registry; repr(registry); print(*sys.modules)")
    assert "gemma4_example.npz" in done.stdout.split()
    assert "tinygrad" not in done.stdout.split()


def test_listing_shows_options_of_the_example(installed: Installed) -> None:
    done = installed.gemma4("generate", "--help")
    assert done.returncode == 0, done.stderr
    assert all(flag in done.stdout for flag in ("--dots", "--dots-scale", "--scale-matrix"))


# ------------------------------------------------------------------------------------------------ part by part


def test_every_part_registers_by_hand() -> None:
    registry = Registry(PluginManager(dict(PARTS), entry_points=False))
    assert registry.problems() == []
    assert {row.name: row.kind for row in registry.rows() if row.kind != "command"} == {
        name: kind for name, kind in KINDS.items() if kind != "command"
    }


def test_npz_reads_what_it_writes(tmp_path: Path, cpu: None) -> None:
    from tinygrad import Tensor, dtypes

    from gemma4_core import DenseMatrix

    rng = np.random.default_rng(0)
    matrix, vector = rng.standard_normal((3, 4), np.float32), rng.standard_normal(5, np.float32)
    weights = [blocks_of("a.weight", DenseMatrix(Tensor(matrix)), "matrix"), blocks_of("b", Tensor(vector), "vector")]
    [description] = npz.gemma4_checkpoint_formats()
    assert description.save is not None and description.save(weights, tmp_path, Context(tmp_path)) is None
    assert description.matches(Context(tmp_path)) and not description.matches(Context(tmp_path.parent))
    source = description.open(Context(tmp_path))
    assert {name: info.shape for name, info in source.infos.items()} == {"a.weight": (3, 4), "b": (5,)}
    assert np.array_equal(source.matrix("a.weight", "CPU", dtypes.float32).dense().numpy(), matrix)
    assert np.array_equal(source.tensor("b", "CPU", dtypes.float32).numpy(), vector)
    assert np.array_equal(source.row_reader("a.weight", True)(np.array([[2, 0]])), matrix[[[2, 0]]])
    with pytest.raises(CheckpointError, match="no tensor \"c\""):
        source.tensor("c", "CPU", dtypes.float32)
    source.close()


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "objects", "double"])
def test_npz_refuses_damaged_archives(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, a=np.zeros((8, 8), np.float32))
    if damage == "objects":
        np.savez(path, a=np.array([{}], object))
    elif damage == "double":
        np.savez(path, a=np.zeros(3))
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 99, "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(CheckpointError) as caught:
        npz.gemma4_checkpoint_formats()[0].open(Context(tmp_path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_dots_become_soft_tokens(tmp_path: Path, cpu: None) -> None:
    from tinygrad import Tensor

    processor = dots.processor(Context(), {"dots_scale": 2.0})
    prepared = processor.prepare([processor.load([1, 2.5]), processor.load((3,))])
    assert list(prepared.soft_tokens) == [2, 1]
    assert prepared.expansions == ["<|dots|><|dots|>", "<|dots|>"]
    tower = dots.DotsTower(Tensor([1.0, -1.0, 0.5]))
    first, second = tower.encode(prepared.features)
    assert first.numpy().tolist() == [[2, -2, 1], [5, -5, 2.5]] and second.numpy().tolist() == [[6, -6, 3]]
    digests = tower.digests(prepared.features)
    assert len(set(digests)) == 2 and digests == tower.digests(dict(prepared.features))


@pytest.mark.parametrize("medium", [[], ["x"], [float("nan")], [1.0] * 65, None, 7])
def test_dots_refuse_what_is_no_numbers(medium: object) -> None:
    with pytest.raises(InputError):
        dots.processor(Context(), {}).load(medium)


def byte_folder(folder: Path, text: str = '{"special": ["<pad>", "<eos>", "<bos>", "<|dots|>"]}') -> Context:
    (folder / "bytes_tokenizer.json").write_text(text)
    return Context(folder)


def test_bytes_go_there_and_back(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer.load(byte_folder(tmp_path))
    text = "<bos>Zoë 🦓<|dots|>"
    ids = tokenizer.encode(text)
    assert ids[0] == 2 and ids[-1] == 3 and tokenizer.vocab_size == 260
    assert tokenizer.decode(ids) == text and tokenizer.decode(ids, skip_special=True) == "Zoë 🦓"
    stream = tokenizer.stream(skip_special=True)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == "Zoë 🦓" and "�" not in pieces and stream.flush() == ""
    assert stream.add(tokenizer.encode("ë")[0]) == "" and stream.flush() == "�"
    assert stream.add(448) == "�"


def test_bytes_refuse_what_does_not_fit(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer.load(byte_folder(tmp_path))
    for call in (lambda: tokenizer.decode([260]), lambda: tokenizer.decode([-1]), lambda: tokenizer.encode("\ud800")):
        with pytest.raises(TokenizerError):
            call()
    for text in ("", "[]", "{}", '{"special": [1]}', '{"special": "x"}', "[" * 5000):
        with pytest.raises(TokenizerError, match=r"bytes_tokenizer\.json"):
            byte_tokenizer.load(byte_folder(tmp_path, text))


def test_one_core_norm_agrees_with_the_portable_one(cpu: None) -> None:
    from tinygrad import Tensor

    from gemma4_core.ops import portable

    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((2, 3, 48), np.float32), rng.standard_normal(48, np.float32)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight
    table = one_core.operations()
    for norm in (table.rms_norm, portable().rms_norm):
        assert np.abs(norm(Tensor(x), Tensor(weight), 1e-6).numpy() - exact).max() < 1e-5
    bare = table.rms_norm(Tensor(x), None, 1e-6).numpy()
    assert np.array_equal(bare, portable().rms_norm(Tensor(x), None, 1e-6).numpy())
    assert table.linear is portable().linear
    built_in = registry.devices["cpu"].operations
    assert built_in is not None and table.step is built_in().step is not None  # as fast as that one


def test_signum_moves_by_the_sign_of_the_momentum(cpu: None) -> None:
    from tinygrad import Tensor
    from tinygrad.helpers import Context as Settings

    weight, frozen = Tensor([1.0, -2.0, 3.0]).contiguous().realize(), Tensor([1.0]).contiguous().realize()
    optimizer = signum.build({"w": weight, "frozen": frozen}, lr=0.1, weight_decay=0.0, momentum=0.5)
    with Settings(TRAINING=1):
        for _ in range(2):
            optimizer.zero_grad()
            [weight.grad] = (weight * Tensor([1.0, -1.0, 0.0])).sum().gradient(weight)
            optimizer.step()
    assert np.allclose(weight.numpy(), [0.8, -1.8, 3.0]) and frozen.numpy().tolist() == [1.0]
    state = {name: tensor.numpy() for name, tensor in optimizer.state_dict().items()}
    assert np.allclose(state["velocity.w"], [0.75, -0.75, 0.0])
    other = signum.build({"w": weight, "frozen": frozen}, lr=0.1, weight_decay=0.0)
    other.load_state_dict({name: Tensor(values) for name, values in state.items()})
    assert np.allclose(other.state_dict()["velocity.w"].numpy(), state["velocity.w"])


def test_signum_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match="nesterov"):
        signum.build({}, lr=0.1, weight_decay=0.0, nesterov=True)
    with pytest.raises(InputError, match="momentum 1"):
        signum.build({}, lr=0.1, weight_decay=0.0, momentum=1)


@pytest.mark.parametrize("text", ["", "a", "=", "=2", "a=", "a=x", "a=nan", "a=inf"])
def test_scale_refuses_what_is_no_name_with_factor(text: str) -> None:
    with pytest.raises(Gemma4Error, match="NAME=FACTOR"):
        scale.parse(text)


def test_scaled_matrix_is_the_matrix_times_the_factor(cpu: None) -> None:
    from gemma4_example.scaled import ScaledMatrix
    from tinygrad import Tensor

    from gemma4_core import DenseMatrix

    values = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    matrix = ScaledMatrix(DenseMatrix(Tensor(values)), 0.5)
    x = Tensor(np.ones((2, 4), np.float32))
    assert scale.parse("*.a=b=0.5") == ("*.a=b", 0.5)
    assert matrix.shape == (3, 4)
    assert np.allclose(matrix.matmul(x).numpy(), (np.ones((2, 4)) @ values.T) * 0.5, atol=1e-6)
    assert np.allclose(matrix.rows(Tensor([2])).numpy(), values[[2]] * 0.5)
    assert np.allclose(matrix.parts()[""].numpy(), values * 0.5)


def test_echo_proposes_what_stood_some_distance_back() -> None:
    rows = SimpleNamespace(count=2, slot=np.array([0, 1]), ids=np.array([9, 4], np.int32))
    slots = SimpleNamespace(tokens=lambda slot: [[7, 8], []][slot])
    [description] = echo.gemma4_drafters()
    drafter = description.build(None, slots, {"echo_distance": 2})
    assert drafter.propose(rows, None, 3).tolist() == [[8, 9, 8], [-1] * 3]
    with pytest.raises(InputError, match="--echo-distance 0"):
        description.build(None, slots, {"echo_distance": 0})


def test_events_are_lines_in_order(tmp_path: Path) -> None:
    [description] = events.gemma4_training_callbacks()
    callback, trainer = description.build({}), SimpleNamespace(folder=tmp_path, step=1, total=2)
    callback.on_start(trainer)
    callback.on_step(trainer, SimpleNamespace(loss=0.5))
    callback.on_evaluate(trainer, SimpleNamespace(loss=0.4, lowest=True))
    callback.on_checkpoint(trainer, tmp_path / "step-1")
    callback.on_end(trainer, ValueError("no"))
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "step", "evaluate", "checkpoint", "end"]
    assert lines[2]["lowest"] and lines[3]["folder"] == "step-1" and lines[4]["fault"] == "no"


def test_one_of_allows_the_texts_and_then_the_end(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer.load(byte_folder(tmp_path))
    [description] = one_of.gemma4_constraints()
    constraint = description.build(tokenizer, {"one_of": ["no", "nay"]})

    def allowed() -> list[int]:
        bits = constraint.mask()[:, None] >> np.arange(32, dtype=np.uint32) & 1
        return np.flatnonzero(bits.reshape(-1)).tolist()

    n, o, a = tokenizer.encode("noa")
    assert allowed() == constraint.forced() == [n]
    constraint.advance(n)
    assert allowed() == sorted([a, o]) and constraint.forced() == []
    constraint.advance(o)
    assert allowed() == [tokenizer.special_tokens["<eos>"]]
    constraint.rollback(1)
    assert allowed() == sorted([a, o])
    with pytest.raises(InputError, match="one-of"):
        description.build(tokenizer, {"one_of": []})
