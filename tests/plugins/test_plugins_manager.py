"""Loading plugins: a broken one is recorded, and nothing else notices."""

from __future__ import annotations

import sys

import pytest
from plugin_dists import OPTIMIZER, Dists, dists_fixture  # noqa: F401

from gemma4_core import OptimizerBackend, PluginError, PluginManager, Registry, hookimpl
from gemma4_core.plugins import LoadedPlugin


def loaded(name: str, manager: PluginManager | None = None) -> LoadedPlugin:
    [plugin] = [p for p in (manager or PluginManager()).plugins() if p.origin.entry_point == name]
    return plugin


def names(plugin: LoadedPlugin) -> list[tuple[str, str]]:
    return [(kind, description.name) for kind, description in plugin.descriptions]


def test_nothing_is_imported_before_the_first_look(dists: Dists) -> None:
    module = dists.add(OPTIMIZER.format(name="lazy"))
    registry = Registry(PluginManager())
    assert module not in sys.modules
    assert "lazy" in registry.optimizers
    assert module in sys.modules


def test_loading_happens_once(dists: Dists) -> None:
    dists.add("CALLS = []\n" + OPTIMIZER.format(name="once").replace("    return", "    CALLS.append(1)\n    return"))
    manager = PluginManager()
    assert manager.plugins() is manager.plugins()
    assert len(sys.modules[dists.modules[0]].CALLS) == 1


def test_a_working_plugin_has_its_origin(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="fine"))
    plugin = loaded("toy")
    assert (plugin.status, plugin.errors, plugin.warnings) == ("loaded", [], [])
    assert (plugin.origin.distribution, plugin.origin.version) == ("gemma4-toy", "1.2.3")
    assert names(plugin) == [("optimizer", "fine")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("this is no Python", "SyntaxError"),
        ("class Odd(BaseException):\n    def __str__(self): raise RuntimeError\nraise Odd", "Odd"),
        ("import sys\ndef f(): f()\nf()", "RecursionError"),
    ],
)
def test_a_failing_import_is_recorded_on_one_line(dists: Dists, source: str, expected: str) -> None:
    dists.add(source, "bad", "gemma4-bad")
    dists.add(OPTIMIZER.format(name="fine"), "good", "gemma4-good")
    manager = PluginManager()
    bad = loaded("bad", manager)
    assert bad.status == "failed"
    assert expected in bad.errors[0] and "\n" not in bad.errors[0]
    assert (bad.origin.distribution, bad.origin.version) == ("gemma4-bad", "1.2.3")
    assert names(loaded("good", manager)) == [("optimizer", "fine")]


def test_ctrl_c_while_loading_is_not_swallowed(dists: Dists) -> None:
    dists.add("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        PluginManager().plugins()


def test_an_entry_point_to_nothing_is_a_failure(dists: Dists) -> None:
    module = dists.add("PLUGIN = None")
    dists.metadata(f"[gemma4]\nnone = {module}:PLUGIN\nabsent = {module}:ABSENT\n", "gemma4-other")
    manager = PluginManager()
    assert "None" in loaded("none", manager).errors[0]
    assert "ABSENT" in loaded("absent", manager).errors[0]


def test_entry_points_that_cannot_be_read(dists: Dists) -> None:
    dists.metadata("[gemma4]\nno equals sign\n", "gemma4-garbled")
    dists.metadata("[console_scripts]\nno equals sign\n", "unrelated")
    dists.add(OPTIMIZER.format(name="fine"))
    manager = PluginManager()
    assert loaded("gemma4-garbled", manager).status == "failed"
    assert "entry_points.txt" in loaded("gemma4-garbled", manager).errors[0]
    assert "unrelated" not in [plugin.origin.entry_point for plugin in manager.plugins()]
    assert names(loaded("toy", manager)) == [("optimizer", "fine")]


def test_a_distribution_without_metadata_file(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="fine"), distribution="half-removed")
    (dists.folder / "half_removed-1.2.3.dist-info" / "METADATA").unlink()
    assert names(loaded("toy")) == [("optimizer", "fine")]
    assert "half_removed" in (loaded("toy").origin.distribution or "")


def test_a_metadata_folder_with_nothing_in_it_hides_no_copy(dists: Dists, monkeypatch: pytest.MonkeyPatch) -> None:
    dists.add(OPTIMIZER.format(name="fine"))
    unpacked = dists.folder.parent / "unpacked"
    (unpacked / "gemma4_toy.egg-info").mkdir(parents=True)
    (unpacked / "gemma4_toy.egg-info" / "SOURCES.txt").write_text("setup.py\n")
    monkeypatch.syspath_prepend(str(unpacked))
    assert names(loaded("toy")) == [("optimizer", "fine")]


@pytest.mark.parametrize("value", ["toy", " TOY ", "other,,Toy,"])
def test_blocking_comes_before_import(dists: Dists, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    module = dists.add("raise RuntimeError('imported')")
    monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", value)
    plugin = loaded("toy")
    assert (plugin.status, plugin.errors, plugin.descriptions) == ("blocked", [], [])
    assert module not in sys.modules


def test_blocking_something_that_is_not_there_is_a_warning(dists: Dists, monkeypatch: pytest.MonkeyPatch) -> None:
    dists.add(OPTIMIZER.format(name="fine"), "sluggish")
    monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", "slugish")
    registry = Registry(PluginManager())
    assert any("'slugish'" in problem and "'sluggish'" in problem for problem in registry.problems())


def test_a_hook_that_raises_spares_the_plugins_other_hooks(dists: Dists) -> None:
    source = OPTIMIZER.format(name="fine") + "\n@hookimpl\ndef gemma4_devices():\n    raise SystemExit('no')\n"
    dists.add(source)
    plugin = loaded("toy")
    assert plugin.status == "failed"
    assert plugin.errors == ["gemma4_devices: SystemExit: no"]
    assert names(plugin) == [("optimizer", "fine")]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("None", "returned NoneType, a list of OptimizerBackend"),
        ("{}", "returned dict"),
        ("(x for x in ())", "returned generator"),
        ("['adamw']", "a list with str, OptimizerBackend"),
        ("[DeviceBackend('d', 's', 'CPU', print)]", "a list with DeviceBackend"),
        ("[OptimizerBackend('', 's', print)]", "1 to 60 characters"),
        ("[OptimizerBackend('a\\nb', 's', print)]", "1 to 60 characters"),
        ("[OptimizerBackend('a,b', 's', print)]", "without comma"),
        ("[OptimizerBackend(7, 's', print)]", "name 7"),
        ("[OptimizerBackend('Auto', 's', print)]", "reserved"),
        ("[OptimizerBackend('a', None, print)]", "summary is NoneType"),
        ("[OptimizerBackend('a', 's', None)]", "build is not callable"),
        ("[OptimizerBackend('a', 's', print, matches=True)]", "matches is not callable"),
        ("[OptimizerBackend('a', 's', print, priority='high')]", "priority is str"),
    ],
)
def test_a_wrong_result_is_refused_whole(dists: Dists, result: str, expected: str) -> None:
    source = "from gemma4_core import *\n@hookimpl\ndef gemma4_optimizers():\n    return " + result
    source = source.replace("import *", "import DeviceBackend, OptimizerBackend, hookimpl")
    dists.add(source)
    plugin = loaded("toy")
    assert plugin.status == "failed"
    assert plugin.descriptions == []
    assert expected in plugin.errors[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"options": ("--dots",)}, "an option is str"),
        ({"flag": "dots"}, "--some-word"),
        ({"flag": "--2 dots"}, "--some-word"),
        ({"placed": "inside"}, "'before' or 'after'"),
        ({"keywords": [1]}, "keywords is not a tuple of strings"),
        ({"placeholder": ""}, "placeholder is not a non-empty string"),
        ({"token_ids": {}}, "token_ids is neither"),
    ],
)
def test_a_tower_is_checked_field_by_field(fields: dict[str, object], expected: str) -> None:
    from gemma4_core import ModalityTower, Option

    flag = str(fields.pop("flag", "--dots"))
    values: dict[str, object] = {
        "name": "dots", "summary": "", "processor": print, "build": print, "tensors": print, "placeholder": "<|dots|>",
        "soft_token_id": print, "media_option": Option(flag, "Dots."), "media_keyword": "dots", **fields,
    }  # fmt: skip

    class Plugin:
        @hookimpl
        def gemma4_modality_towers(self) -> list[ModalityTower]:
            return [ModalityTower(**values)]  # type: ignore[arg-type]

    plugin = loaded("toy", PluginManager({"toy": Plugin()}, entry_points=False))
    assert expected in plugin.errors[0]


def test_a_misspelt_hook_is_a_warning_and_the_others_load(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="fine") + "\n@hookimpl\ndef gemma4_optimisers():\n    return []\n")
    plugin = loaded("toy")
    assert plugin.status == "loaded"
    assert plugin.warnings == ["unknown hook 'gemma4_optimisers', did you mean 'gemma4_optimizers'?"]
    assert names(plugin) == [("optimizer", "fine")]


def test_a_hook_without_its_mark_is_a_warning(dists: Dists) -> None:
    dists.add("def gemma4_devices():\n    return []\n")
    assert loaded("toy").warnings == ["gemma4_devices is not marked with @hookimpl and is ignored"]


def test_a_hook_with_arguments_undoes_the_whole_plugin(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="fine") + "\n@hookimpl\ndef gemma4_tokenizers(folder):\n    return []\n")
    dists.add(OPTIMIZER.format(name="other"), "second", "gemma4-second")
    manager = PluginManager()
    assert loaded("toy", manager).status == "failed"
    assert loaded("toy", manager).descriptions == []
    assert list(Registry(manager).optimizers)[-1:] != ["fine"]
    assert "fine" not in Registry(manager).optimizers and "other" in Registry(manager).optimizers


def test_wrapping_a_hook_is_refused(dists: Dists) -> None:
    dists.add("from gemma4_core import hookimpl\n@hookimpl(wrapper=True)\ndef gemma4_devices():\n    return (yield)\n")
    assert "cannot be wrapped" in loaded("toy").errors[0]


def test_objects_and_static_methods_are_plugins_too(dists: Dists) -> None:
    source = """
    from gemma4_core import OptimizerBackend, hookimpl

    class Plugin:
        @staticmethod
        @hookimpl
        def gemma4_optimizers():
            return (OptimizerBackend("static", "", print),)

    plugin = Plugin()
    """
    module = dists.add(source, "unused")
    dists.metadata(f"[gemma4]\nobject = {module}:plugin\n", "gemma4-object")
    assert names(loaded("object")) == [("optimizer", "static")]


def test_one_module_behind_two_entry_points_loads_once(dists: Dists) -> None:
    module = dists.add(OPTIMIZER.format(name="fine"), "first")
    dists.metadata(f"[gemma4]\nsecond = {module}\n", "gemma4-two")
    manager = PluginManager()
    assert names(loaded("first", manager)) == [("optimizer", "fine")]
    assert "already loaded" in loaded("second", manager).errors[0]


def test_one_entry_point_name_in_two_distributions(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="one"), "same", "gemma4-a")
    dists.add(OPTIMIZER.format(name="two"), "same", "gemma4-b")
    plugins = [p for p in PluginManager().plugins() if p.origin.entry_point == "same"]
    assert [names(p) for p in plugins] == [[("optimizer", "one")], [("optimizer", "two")]]


def test_a_shadowed_copy_of_a_distribution_is_not_loaded_twice(
    dists: Dists, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = dists.add(OPTIMIZER.format(name="fine"))
    second = Dists(dists.folder.parent / "second")
    second.folder.mkdir()
    second.metadata(f"[gemma4]\ntoy = {module}\n", "Gemma4_Toy", "9.9")
    monkeypatch.setattr(sys, "path", [*sys.path, str(second.folder)])
    assert loaded("toy").origin.version == "1.2.3"


def test_using_the_registry_while_plugins_load_is_that_plugins_failure(dists: Dists) -> None:
    dists.add("from gemma4_core import registry\nNAMES = list(registry.optimizers)")
    from gemma4_core import registry

    registry.reload()
    try:
        plugin = loaded("toy", registry.manager)
        assert "while plugins were being loaded" in plugin.errors[0]
    finally:
        registry.reload()


def test_what_a_plugin_prints_stays_off_stdout(dists: Dists, capsys: pytest.CaptureFixture[str]) -> None:
    chatty = OPTIMIZER.format(name="x").replace("    return", "    print('hello from the hook')\n    return")
    dists.add("print('hello from import')\n" + chatty)
    assert loaded("toy").status == "loaded"
    assert capsys.readouterr().out == ""


def test_debug_shows_the_traceback(
    dists: Dists, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dists.add("1 / 0")
    monkeypatch.setenv("GEMMA4_DEBUG", "1")
    PluginManager().plugins()
    assert "Traceback" in capsys.readouterr().err


class ByHand:
    def __init__(self, result: object) -> None:
        self.result = result

    @hookimpl
    def gemma4_optimizers(self) -> object:
        return self.result


def test_registering_by_hand_and_taking_back() -> None:
    registry = Registry(PluginManager(entry_points=False))
    registry.register(ByHand([OptimizerBackend("mine", "", print)]), "hand")
    assert list(registry.optimizers) == ["mine"]
    with pytest.raises(PluginError, match="already registered"):
        registry.register(ByHand([]), "hand")
    registry.reload()
    assert list(registry.optimizers) == ["mine"]
    registry.unregister("hand")
    assert list(registry.optimizers) == []
    with pytest.raises(PluginError, match="'hand'"):
        registry.unregister("hand")


def test_a_failed_registration_by_hand_leaves_nothing() -> None:
    registry = Registry(PluginManager(entry_points=False))
    plugin = ByHand(["junk"])
    with pytest.raises(PluginError, match=r"gemma4_optimizers.*str"):
        registry.register(plugin, "hand")
    assert registry.problems() == []
    plugin.result = [OptimizerBackend("mended", "", print)]
    registry.register(plugin, "hand")
    assert list(registry.optimizers) == ["mended"]
