"""Choosing among plugins: by name, by match, by priority; what is said where that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_dists import OPTIMIZER, Dists, dists_fixture  # noqa: F401

from gemma4_core import (
    CheckpointFormat,
    Context,
    DeviceBackend,
    DeviceError,
    ModelTransform,
    Option,
    PluginError,
    PluginManager,
    Registry,
    TokenizerBackend,
    hookimpl,
)


class Plugin:
    """Yields what it is given, by kind."""

    def __init__(self, **items: list[Any]) -> None:
        self.items = items

    @hookimpl
    def gemma4_checkpoint_formats(self) -> list[CheckpointFormat]:
        return self.items.get("formats", [])

    @hookimpl
    def gemma4_devices(self) -> list[DeviceBackend]:
        return self.items.get("devices", [])

    @hookimpl
    def gemma4_tokenizers(self) -> list[TokenizerBackend]:
        return self.items.get("tokenizers", [])

    @hookimpl
    def gemma4_model_transforms(self) -> list[ModelTransform]:
        return self.items.get("transforms", [])


def make(**plugins: Plugin) -> Registry:
    return Registry(PluginManager(plugins, entry_points=False))


def a_format(name: str, matches: Callable[[Context], bool] = lambda _: True, priority: int = 0) -> CheckpointFormat:
    return CheckpointFormat(name, f"format {name}", open=print, matches=matches, priority=priority)


def formats(*items: CheckpointFormat) -> Registry:
    return make(one=Plugin(formats=list(items)))


def device(name: str, reason: object = None, priority: int = 0) -> DeviceBackend:
    def unusable() -> Any:
        if isinstance(reason, BaseException):
            raise reason
        return reason

    return DeviceBackend(name, f"device {name}", name.upper(), unusable=unusable, priority=priority)


def devices(*items: DeviceBackend) -> Registry:
    return make(one=Plugin(devices=list(items)))


def message(call: Callable[[], object], kind: type[Exception] = PluginError) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert 0 < len(text) < 500 and text.isprintable()
    return text


# ------------------------------------------------------------------------------------------------ mapping


def test_a_view_is_a_mapping_that_ignores_case() -> None:
    view = formats(a_format("int8"), a_format("BF16")).formats
    assert list(view) == ["BF16", "int8"] and len(view) == 2
    assert view["bf16"].name == "BF16" and view["INT8"].name == "int8"
    assert "Bf16" in view and "fp4" not in view and 3 not in view
    assert view.get("fp4") is None
    assert dict(view)["int8"] is view.int8
    assert sorted(view.keys()) == ["BF16", "int8"]


def test_a_view_completes_names() -> None:
    view = formats(a_format("int8"), a_format("two-words")).formats
    assert view._ipython_key_completions_() == ["int8", "two-words"]
    assert "int8" in dir(view) and "two-words" not in dir(view) and "items" in dir(view)


def test_looking_up_an_unknown_name_says_what_there_is() -> None:
    view = formats(a_format("bf16"), a_format("int8")).formats
    for error in (KeyError, PluginError):
        with pytest.raises(error):
            view["int9"]
    text = message(lambda: view["int9"])
    assert text == "unknown --format 'int9', did you mean 'int8'? (known: bf16, int8)"
    with pytest.raises(AttributeError, match="int9"):
        _ = view.int9
    assert not hasattr(view, "_private")


def test_representations_are_readable_and_escaped() -> None:
    evil = CheckpointFormat("<b>", "<script>alert(1)</script>\nsecond \x1b[31mline", open=print)
    registry = formats(evil, a_format("int8"))
    assert "checkpoint formats: 2" in repr(registry.formats)
    assert "format int8" in repr(registry.formats) and "by hand" in repr(registry.formats)
    assert "\x1b" not in repr(registry) and "\x1b" not in registry._repr_html_()
    assert "<script>" not in registry._repr_html_() and "&lt;script&gt;" in registry.formats._repr_html_()
    assert "devices: 0" in repr(registry)


def test_an_unknown_kind() -> None:
    assert "'colour'" in message(lambda: formats().select("colour"))


# ------------------------------------------------------------------------------------------------ choosing


def test_a_name_wins_over_matches() -> None:
    registry = formats(a_format("bf16"), a_format("int8", matches=lambda _: False))
    assert registry.select("format", Context(), "INT8").name == "int8"
    assert registry.formats.select(Context(), "int8").name == "int8"


@pytest.mark.parametrize("name", [None, "auto", "AUTO"])
def test_the_match_of_highest_priority_wins(name: str | None) -> None:
    registry = formats(a_format("low"), a_format("high", priority=5), a_format("no", lambda _: False, priority=9))
    assert registry.select("format", Context(), name).name == "high"
    assert [item.name for item in registry.matching("format", Context())] == ["high", "low"]
    assert registry.formats.matching()[0].name == "high"


def test_matches_sees_the_context(tmp_path: Path) -> None:
    registry = formats(a_format("npz", matches=lambda context: context.file("model.npz") is not None))
    assert registry.matching("format", Context(tmp_path)) == []
    (tmp_path / "model.npz").touch()
    assert registry.select("format", Context(tmp_path)).name == "npz"


def test_a_tie_names_both(tmp_path: Path) -> None:
    right = Plugin(formats=[a_format("b"), a_format("c", priority=-1)])
    registry = make(left=Plugin(formats=[a_format("a")]), right=right)
    text = message(lambda: registry.select("format", Context(tmp_path)))
    assert "'a'" in text and "'left'" in text and "'b'" in text and "'right'" in text and "--format" in text
    assert "'c'" not in text and str(tmp_path) in text


def test_no_match_lists_what_is_installed(tmp_path: Path) -> None:
    registry = formats(a_format("bf16", matches=lambda _: False))
    text = message(lambda: registry.select("format", Context(tmp_path)))
    assert str(tmp_path) in text and "no format plugin" in text and "bf16" in text
    assert "no tokenizer plugin is installed" in message(lambda: registry.select("tokenizer", Context()))


@pytest.mark.parametrize("error", [RuntimeError("boom\nbang"), SystemExit(1), NotImplementedError()])
def test_an_exception_in_matches_is_no_match_and_is_recorded(error: BaseException) -> None:
    def raises(_: Context) -> bool:
        raise error

    registry = formats(a_format("bad", raises, priority=9), a_format("good"))
    assert registry.select("format", Context()).name == "good"
    assert type(error).__name__ in registry.match_errors["format", "bad"]
    assert any("'bad'" in problem for problem in registry.problems())
    [row] = [row for row in registry.rows() if row.name == "bad"]
    assert row.status == "loaded" and type(error).__name__ in (row.error or "")
    assert type(error).__name__ in message(lambda: formats(a_format("bad", raises)).select("format", Context()))


def test_an_unusual_value_of_matches() -> None:
    registry = formats(a_format("truthy", lambda _: "yes"), a_format("falsy", lambda _: None))  # type: ignore[arg-type,return-value]
    assert registry.select("format", Context()).name == "truthy"


def test_long_and_odd_names_are_shown_shortened() -> None:
    registry = formats(*(a_format(f"format-{i}") for i in range(90)))
    assert "'xxxx" in message(lambda: registry.select("format", Context(), "x" * 10_000))
    assert "'a b'" in message(lambda: registry.select("format", Context(), "a\nb"))


# ------------------------------------------------------------------------------------------------ duplicates


def twice() -> Registry:
    return make(
        left=Plugin(formats=[a_format("Same"), a_format("left")]),
        right=Plugin(formats=[a_format("same", priority=1), a_format("right", priority=-5)]),
    )


def test_two_plugins_with_one_name_are_an_error_that_names_both() -> None:
    registry = twice()
    for call in (
        lambda: registry.select("format", Context(), "SAME"),
        lambda: registry.select("format", Context()),
        lambda: registry.matching("format", Context()),
        lambda: registry.formats["same"],
    ):
        text = message(call)
        assert "'left'" in text and "'right'" in text and "same" in text.lower()


def test_what_has_nothing_to_do_with_a_duplicate_goes_on() -> None:
    registry = twice()
    assert list(registry.formats) == ["left", "right"]
    assert dict(registry.formats)["left"].name == "left"
    assert registry.select("format", Context(), "right").name == "right"
    assert "same" not in registry.formats and registry.formats.get("same") is None
    assert "'left'" in repr(registry.formats)


def test_duplicates_are_rows_and_problems() -> None:
    registry = twice()
    rows = [row for row in registry.rows() if row.name.lower() == "same"]
    assert [row.status for row in rows] == ["failed", "failed"]
    assert all("'left'" in (row.error or "") and "'right'" in (row.error or "") for row in rows)
    assert any("'left'" in problem and "'right'" in problem for problem in registry.problems())


def test_duplicates_name_distributions(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="lion"), "a", "gemma4-savanna", "1.0")
    dists.add(OPTIMIZER.format(name="Lion"), "b", "gemma4-zoo", "2.0")
    text = message(lambda: Registry(PluginManager()).select("optimizer", Context(), "lion"))
    assert "gemma4-savanna 1.0" in text and "gemma4-zoo 2.0" in text


def test_one_name_in_two_kinds_is_no_duplicate() -> None:
    registry = make(one=Plugin(formats=[a_format("raw")], tokenizers=[TokenizerBackend("raw", "", load=print)]))
    assert registry.select("format", Context(), "raw") is not registry.select("tokenizer", Context(), "raw")


def test_a_doubled_transform_matters_only_to_those_who_want_it(tmp_path: Path) -> None:
    def transform() -> ModelTransform:
        return ModelTransform("lora", "", apply=print, options=(Option("--adapter", ""),), files=("adapter",))

    registry = make(left=Plugin(transforms=[transform()]), right=Plugin(transforms=[transform()]))
    assert registry.matching("transform", Context(tmp_path)) == []
    assert "'left'" in message(lambda: registry.matching("transform", Context(tmp_path), {"adapter": "x"}))
    (tmp_path / "adapter").mkdir()
    assert "'right'" in message(lambda: registry.transforms.matching(Context(tmp_path)))


# ------------------------------------------------------------------------------------------------ devices


def test_auto_takes_the_first_usable_device() -> None:
    registry = devices(device("cpu", priority=1), device("gpu", "no driver", priority=9), device("npu", None, 5))
    assert registry.select_device().name == "npu"
    assert registry.select_device("auto").name == "npu"
    assert registry.select("device", Context()).name == "npu"
    assert registry.select_device("CPU").name == "cpu"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("no driver:\ninstall one", "no driver: install one"),
        (OSError("gone"), "OSError: gone"),
        (SystemExit(1), "SystemExit: 1"),
        ("", "no reason given"),
        (7, "7"),
    ],
)
def test_an_unusable_device_says_why(reason: object, expected: str) -> None:
    registry = devices(device("gpu", reason), device("npu", "busy"))
    assert expected in message(lambda: registry.select_device("GPU"), DeviceError)
    assert "'GPU'" in message(lambda: registry.select_device("GPU"), DeviceError)
    text = message(lambda: registry.select_device("auto"), DeviceError)
    assert "gpu: " in text and expected[:20] in text and "npu: busy" in text


def test_a_device_that_does_not_match_is_left_out_of_auto_only() -> None:
    shy = DeviceBackend("shy", "", "SHY", unusable=lambda: None, matches=lambda _: False, priority=9)
    registry = devices(shy, device("cpu"))
    assert registry.select_device().name == "cpu"
    assert registry.select_device("shy").name == "shy"


def test_unknown_and_absent_devices() -> None:
    assert "'tpu'" in message(lambda: devices(device("cpu")).select_device("tpu"))
    assert "did you mean 'cpu'" in message(lambda: devices(device("cpu")).select_device("cpuu"))
    assert "no device plugin" in message(lambda: devices().select_device(), DeviceError)


def test_a_doubled_device_is_passed_over_by_auto() -> None:
    left = Plugin(devices=[device("gpu", priority=9), device("cpu")])
    registry = make(left=left, right=Plugin(devices=[device("gpu", priority=9)]))
    assert registry.select_device().name == "cpu"
    assert "'left'" in message(lambda: registry.select_device("gpu"))


# ------------------------------------------------------------------------------------------------ blocked and failed


def test_removing_a_built_in_entry_point_removes_the_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", "cpu,raw")
    registry = Registry(PluginManager())
    assert "cpu" not in registry.devices and "raw" not in registry.tokenizers
    text = message(lambda: registry.select_device("cpu"))
    assert "--device 'cpu'" in text and "blocked" in text and "GEMMA4_DISABLE_PLUGINS" in text
    assert "blocked: cpu, raw" in message(lambda: registry.select("tokenizer", Context(), "nonsense"))
    monkeypatch.delenv("GEMMA4_DISABLE_PLUGINS")
    registry.reload()
    assert "cpu" in registry.devices


def test_a_failed_plugin_says_so_when_it_is_wanted(dists: Dists) -> None:
    dists.add("import a_module_that_nobody_has", "lion", "gemma4-zoo")
    text = message(lambda: Registry(PluginManager()).select("optimizer", Context(), "Lion"))
    assert "'Lion'" in text and "gemma4-zoo 1.2.3" in text and "a_module_that_nobody_has" in text


def test_built_ins_come_through_entry_points_only() -> None:
    registry = Registry(PluginManager(entry_points=False))
    assert registry.rows() == [] or {row.kind for row in registry.rows()} == {"command"}
    assert registry.problems() == []
