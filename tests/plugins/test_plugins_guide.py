"""The author's guide is complete and true: each hook has its heading, every snippet runs."""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gemma4_core import (
    CheckpointError,
    Context,
    DeviceSettings,
    InputError,
    PluginManager,
    Registry,
    TokenizerError,
    hookspecs,
)
from gemma4_core.contracts import KINDS
from gemma4_core.devices import activate

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "plugins.md").read_text()
HOOKS = sorted(name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec"))


def blocks(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}$\n(.*?)(?=^#+ |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/plugins.md has no heading {title!r}"
    return found[1]


def module_of(code: str) -> Any:
    module = types.ModuleType("snippet")
    exec(compile(code, "docs/plugins.md", "exec"), module.__dict__)
    return module


def described(hook: str) -> Any:
    """The description that the example under a hook's heading yields, through the manager's checks."""
    [code] = blocks("python", section(f"`{hook}`"))
    registry = Registry(PluginManager({"guide": module_of(code)}, entry_points=False))
    assert registry.problems() == []
    [(kind, description)] = registry.manager.plugins()[0].descriptions
    assert KINDS[kind][0] == hook
    return description


@pytest.fixture(name="cpu", scope="module")
def cpu_fixture() -> None:
    activate("cpu", DeviceSettings())


def test_there_is_a_hook_for_each_kind() -> None:
    assert sorted(hook for hook, _ in KINDS.values()) == HOOKS and len(HOOKS) == 9


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_heading_with_an_example(hook: str) -> None:
    assert f"def {hook}(" in section(f"`{hook}`")
    described(hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_that_names_it(hook: str) -> None:
    others = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(hook in path.read_text() for path in others)


@pytest.mark.parametrize("code", blocks("python"))
def test_every_python_snippet_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    module_of(code)


def test_every_hook_of_the_example_package_is_registered_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "examples" / "plugin").rglob("*.py"))
    assert all(f"def {hook}(" in sources for hook in HOOKS)


def test_the_pyproject_snippet_declares_entry_points() -> None:
    [text] = blocks("toml")
    entry_points = tomllib.loads(text)["project"]["entry-points"]
    assert entry_points["gemma4"] == {"heavy-ball": "my_plugin"}
    assert entry_points["gemma4.commands"] == {"greet": "my_command:greet"}


def test_every_command_line_runs() -> None:
    from gemma4_plugins.commands.plugins import plugins_command

    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert lines
    for line in lines:
        program, command, *arguments = line.split()
        assert (program, command) == ("gemma4", "plugins")
        assert CliRunner().invoke(plugins_command, arguments).exit_code == 0


def test_the_format(tmp_path: Path, cpu: None) -> None:
    from tinygrad import dtypes

    description = described("gemma4_checkpoint_formats")
    assert not description.matches(Context(tmp_path))
    (tmp_path / "weights.json").write_text('{"a": [[1, 2], [3, 4]]}')
    assert description.matches(Context(tmp_path))
    source = description.open(Context(tmp_path))
    assert source.infos["a"].shape == (2, 2)
    assert source.matrix("a", "CPU", dtypes.float32).dense().numpy().tolist() == [[1, 2], [3, 4]]
    assert source.row_reader("a", False)(np.array([1])).tolist() == [[3, 4]]
    (tmp_path / "weights.json").write_text("[")
    with pytest.raises(CheckpointError):
        description.open(Context(tmp_path))


def test_the_tower(tmp_path: Path, cpu: None) -> None:
    from tinygrad import Tensor

    from gemma4_core.processing import resolve

    description = described("gemma4_modality_towers")
    assert description.matches(Context(raw_config={"loudness_token_id": 9})) and not description.matches(Context())
    (tmp_path / "file").write_bytes(bytes([1, 3]))
    processor = description.processor(Context(), {})
    prepared = processor.prepare([processor.load(resolve(str(tmp_path / "file")))])
    source = types.SimpleNamespace(tensor=lambda name, device, dtype: Tensor([1.0, -1.0]))
    tower = description.build(types.SimpleNamespace(device="CPU", dtype=None), source)
    [tokens] = tower.encode(prepared.features)
    assert tokens.numpy().tolist() == [[2, -2]] and len(tower.digests(prepared.features)) == 1
    with pytest.raises(InputError):
        processor.load(resolve(b""))


def test_the_tokenizer() -> None:
    tokenizer = described("gemma4_tokenizers").load(Context())
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(TokenizerError):
        tokenizer.encode("ë")


def test_the_device(cpu: None) -> None:
    from tinygrad import Tensor

    from gemma4_core import DenseMatrix

    description = described("gemma4_devices")
    assert description.unusable() is None
    x, matrix = Tensor([[1.0, 2.0]]), DenseMatrix(Tensor([[1.0, 0.0], [0.0, 3.0]]))
    assert description.operations().linear(x, matrix).numpy().tolist() == [[1, 6]]


def optimizers() -> Iterator[Any]:
    yield described("gemma4_optimizers")
    [plugin] = Registry(PluginManager({"x": module_of(blocks("python")[0])}, entry_points=False)).manager.plugins()
    yield plugin.descriptions[0][1]


def test_the_optimizers(cpu: None) -> None:
    from tinygrad import Tensor
    from tinygrad.helpers import Context as Settings

    for description in optimizers():
        weight = Tensor([1.0, -1.0]).contiguous().realize()
        optimizer = description.build({"w": weight}, lr=0.5, weight_decay=0.0)
        with Settings(TRAINING=1):
            optimizer.zero_grad()
            [weight.grad] = (weight * Tensor([1.0, -1.0])).sum().gradient(weight)
            optimizer.step()
        assert weight.numpy().tolist() == [0.5, -0.5]


def test_the_transform(cpu: None) -> None:
    from tinygrad import Tensor

    from gemma4_core import DenseMatrix, Weight

    description = described("gemma4_model_transforms")
    assert description.wanted({"transpose_matrix": "a"}, Context()) and not description.wanted({}, Context())
    calls: list[int] = []
    places = {"a": Weight("a", DenseMatrix(Tensor([[1.0, 2.0], [3.0, 4.0]])))}
    model: Any = types.SimpleNamespace(places=places, invalidate=lambda: calls.append(1))
    description.apply(model, {"transpose_matrix": "a"})
    assert places["a"].matrix.dense().numpy().tolist() == [[1, 3], [2, 4]] and calls == [1]
    with pytest.raises(InputError, match="'b'"):
        description.apply(model, {"transpose_matrix": "b"})


def test_the_drafter() -> None:
    description = described("gemma4_drafters")
    drafter = description.build(None, None, {})
    rows = types.SimpleNamespace(ids=np.array([7, 9], np.int32))
    assert not drafter.needs_hidden and drafter.propose(rows, None, 3).tolist() == [[7] * 3, [9] * 3]


def test_the_constraint() -> None:
    description = described("gemma4_constraints")
    tokenizer = types.SimpleNamespace(vocab_size=40)
    constraint = description.build(tokenizer, {"alternating": [3, 39]})
    found = []
    for token in (3, 39, 3):
        found.append(constraint.mask().tolist())
        assert constraint.forced() == [token]
        constraint.advance(token)
    assert found == [[8, 0], [0, 128], [8, 0]]
    constraint.rollback(2)
    assert constraint.mask().tolist() == [0, 128]
    with pytest.raises(InputError, match="two token ids"):
        description.build(tokenizer, {"alternating": [3, 40]})


def test_the_callback() -> None:
    description = described("gemma4_training_callbacks")
    assert description.options[0].keyword == "stop_below"
    calls: list[int] = []
    trainer = types.SimpleNamespace(stop=lambda: calls.append(1))
    callback = description.build({"stop_below": 0.5})
    for loss in (0.6, 0.4):
        callback.on_step(trainer, types.SimpleNamespace(loss=loss))
    assert calls == [1] and callback.on_start(trainer) is None


def test_the_command() -> None:
    command = module_of(blocks("python", section("Commands"))[0]).greet
    assert CliRunner().invoke(command, ["world"]).output == "Hello world!\n"
