"""Options: several values after one flag, and options that plugins bring."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click
import pytest
from cli_tools import FakeModel, failure, gemma4, usage
from click.testing import CliRunner

import gemma4_core.plugins as plugins
from gemma4_core import ModalityTower, ModelTransform, Option, PluginManager, Registry, hookimpl
from gemma4_core.cli.base import GemmaCommand, ManyOption, spread


@pytest.mark.parametrize(("typed", "meant"), [
    ("--sizes A B --out x", "--sizes A --sizes B --out x"),
    ("--sizes A", "--sizes A"),
    ("--sizes=A B", "--sizes=A --sizes B"),
    ("--sizes A --sizes B C", "--sizes A --sizes B --sizes C"),
    ("--sizes A - B", "--sizes A --sizes - --sizes B"),
    ("--sizes -odd B -v", "--sizes -odd --sizes B -v"),
    ("--out --sizes A B", "--out --sizes A B"),
    ("--sizes A -- B C", "--sizes A -- B C"),
    ("--sizes", "--sizes"),
    ("A B", "A B"),
])
def test_several_values_after_one_flag(typed: str, meant: str) -> None:
    assert spread(typed.split(), {"--sizes"}, {"--out"}) == meant.split()


@click.command(cls=GemmaCommand)
@click.option("--sizes", "-s", cls=ManyOption, separator=",")
@click.option("--numbers", cls=ManyOption, type=int, default=[7])
@click.option("--out")
def many(sizes: tuple[str, ...], numbers: tuple[int, ...], out: str | None) -> None:
    click.echo(repr({"sizes": sizes, "numbers": numbers, "out": out}))


@pytest.mark.parametrize(("args", "expected"), [
    ("--sizes E2B E4B 26B-A4B --out x", {"sizes": ("E2B", "E4B", "26B-A4B"), "numbers": (7,), "out": "x"}),
    ("-s E2B,E4B , 31B", {"sizes": ("E2B", "E4B", "31B"), "numbers": (7,), "out": None}),
    ("--numbers 1 2 --numbers 3", {"sizes": (), "numbers": (1, 2, 3), "out": None}),
])
def test_many_options_of_a_command(args: str, expected: dict[str, Any]) -> None:
    assert CliRunner().invoke(many, args.split()).output.strip() == repr(expected)


def test_a_wrong_value_among_several_is_named() -> None:
    ran = CliRunner().invoke(many, ["--numbers", "1", "two"])
    assert ran.exit_code == 2 and "'two' is not a valid integer" in ran.stderr


# ---------------------------------------------------------------------------------------------------- of plugins


def smell(name: str = "smell", flag: str = "--smell", *options: Option) -> ModalityTower:
    def absent(*args: object) -> Any:
        raise AssertionError("not used here")

    return ModalityTower(
        name=name, summary="Smells.", processor=absent, build=absent, tensors=lambda config: {},
        placeholder="<|smell|>", soft_token_id=lambda config: 5, media_option=Option(flag, "A bottle."),
        media_keyword="smells", options=options,
    )


def plugin(hook: str, *found: Any) -> Any:
    return SimpleNamespace(**{hook: hookimpl(lambda: list(found), specname=hook)})


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Plugins by name; put some in before the first command."""
    found: dict[str, Any] = {}
    manager = PluginManager(found, entry_points=False)
    manager._by_hand = found  # the same dict, so that tests can add to it
    monkeypatch.setattr(plugins, "registry", Registry(manager))
    return found


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load(name: str, *, check: Any, **asked: Any) -> FakeModel:
        fake.loaded = asked  # type: ignore[attr-defined]
        check(fake.processor)
        return fake

    monkeypatch.setattr("gemma4_core.loading.load_pretrained", load)
    return fake


def test_media_options_are_listed_without_plugins_and_refused_in_a_sentence(offered: dict[str, Any]) -> None:
    for command in ("generate", "chat"):
        shown = gemma4(command, "--help").out
        for flag in ("--image", "--audio", "--format", "--modality"):
            assert f"  {flag} " in shown
    assert "--prompt " in gemma4("generate", "--help").out and "--prompt-tokens " in gemma4("generate", "--help").out
    line = failure("generate", "-m", "m", "--prompt", "a", "--image", "photo.png")
    assert line == "Error: --image photo.png: no plugin for images is loaded; gemma4 plugins says why"
    assert "sound.wav: no plugin for audio" in failure("chat", "-m", "m", "--audio", "sound.wav", stdin="")


def test_a_towers_options_arrive_where_it_says(offered: dict[str, Any], model: FakeModel) -> None:
    options = (
        Option("--noses", "How many.", type=int, default=2), Option("--strong", "Strongly.", type=bool),
        Option("--note", "Notes.", multiple=True), Option("--grade", "Grade.", type=int, choices=(1, 2), default=1),
    )
    offered["smell"] = plugin("gemma4_modality_towers", smell("smell", "--smell", *options))
    shown = gemma4("generate", "--help").out
    assert "--smell" in shown and "--noses" in shown and "[1|2]" in shown and "No plugin for images" in shown
    args = ["generate", "-m", "m", "--prompt", "a", "--smell", "rose", "tar", "--noses", "3", "--strong",
            "--note", "top", "base", "--grade", "2"]
    assert gemma4(*args).code == 0
    assert model.asked[0]["smells"] == ["rose", "tar"]
    assert model.loaded["options"] == {  # type: ignore[attr-defined]
        "noses": 3, "strong": True, "note": ("top", "base"), "grade": 2,
    }
    gemma4(*args[:5])
    assert model.loaded["options"] == {  # type: ignore[attr-defined]
        "noses": 2, "strong": False, "note": (), "grade": 1,
    }
    assert "smells" not in model.asked[1]
    assert "'three'" in usage(*args[:5], "--noses", "three")
    assert "'7'" in usage(*args[:5], "--grade", "7")


def test_a_transforms_options_arrive(offered: dict[str, Any], model: FakeModel) -> None:
    transform = ModelTransform("adapter", "Adapts.", lambda model, values: None, (Option("--adapter", "A folder."),))
    offered["adapter"] = plugin("gemma4_model_transforms", transform)
    assert gemma4("generate", "-m", "m", "--prompt", "a", "--adapter", "folder").code == 0
    assert model.loaded["options"]["adapter"] == "folder"  # type: ignore[attr-defined]


def test_an_option_of_two_plugins_harms_only_who_uses_it(offered: dict[str, Any], model: FakeModel) -> None:
    offered["one"] = plugin("gemma4_modality_towers", smell("one"))
    offered["two"] = plugin("gemma4_modality_towers", smell("two"))
    assert gemma4("generate", "-m", "m", "--prompt", "a").code == 0
    line = failure("generate", "-m", "m", "--prompt", "a", "--smell", "rose")
    assert "--smell rose" in line and "'one'" in line and "'two'" in line


def test_a_plugin_cannot_take_an_option_of_ours(offered: dict[str, Any], model: FakeModel) -> None:
    offered["thief"] = plugin("gemma4_modality_towers", smell("thief", "--smell", Option("--prompt", "Mine.")))
    assert "Mine." not in gemma4("generate", "--help").out
    assert gemma4("generate", "-m", "m", "--prompt", "a").code == 0 and model.asked[0]["prompt"][-1]["content"] == "a"


def test_an_option_with_a_wrong_default_harms_nobody(offered: dict[str, Any], model: FakeModel) -> None:
    option = Option("--noses", "How many.", type=int, default="many")
    offered["smell"] = plugin("gemma4_modality_towers", smell("smell", "--smell", option))
    assert gemma4("generate", "--help").code == 0
    assert gemma4("generate", "-m", "m", "--prompt", "a").code == 0
