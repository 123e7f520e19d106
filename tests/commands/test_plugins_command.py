"""``gemma4 plugins``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from plugin_dists import OPTIMIZER, Dists, dists_fixture  # noqa: F401

import gemma4_core.plugins as plugins
from gemma4_core import PluginManager, Registry
from gemma4_plugins.commands.plugins import plugins_command

FIELDS = ["name", "kind", "summary", "status", "distribution", "version", "error"]


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "registry", Registry(PluginManager()))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(plugins_command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result


def rows(*arguments: str) -> list[dict[str, Any]]:
    return json.loads(run("--json", *arguments).stdout)


def row(name: str, *arguments: str) -> dict[str, Any]:
    [found] = [item for item in rows(*arguments) if item["name"] == name]
    return found


def test_built_ins_are_listed_with_every_field() -> None:
    found = row("cpu")
    assert list(found) == FIELDS
    assert found["kind"] == "device" and found["status"] == "loaded" and found["error"] is None
    assert found["distribution"] == "tinygrad-gemma4" and found["version"] and found["summary"]


def test_a_failed_plugin_is_a_row_without_kind(dists: Dists) -> None:
    dists.add("1 / 0", "bad", "gemma4-bad", "0.1")
    assert row("bad") == {
        "name": "bad", "kind": None, "summary": None, "status": "failed", "distribution": "gemma4-bad",
        "version": "0.1", "error": "ZeroDivisionError: division by zero",
    }  # fmt: skip


def test_a_blocked_plugin_is_a_row_without_kind(dists: Dists, monkeypatch: pytest.MonkeyPatch) -> None:
    dists.add("1 / 0", "Bad")
    monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", "bad")
    found = row("Bad")
    assert (found["kind"], found["status"], found["error"]) == (None, "blocked", None)


def test_a_plugin_that_yields_nothing_is_a_row_without_kind(dists: Dists) -> None:
    dists.add("from gemma4_core import hookimpl\n@hookimpl\ndef gemma4_devices():\n    return []")
    found = row("toy")
    assert (found["kind"], found["status"], found["error"]) == (None, "loaded", None)


def test_a_plugin_that_works_in_part_shows_both(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="fine") + "\n@hookimpl\ndef gemma4_devices():\n    return None\n")
    assert row("fine")["status"] == "loaded"
    assert row("toy")["status"] == "failed" and "gemma4_devices" in row("toy")["error"]


def test_a_misspelt_hook_shows_in_the_row(dists: Dists) -> None:
    dists.add("from gemma4_core import hookimpl\n@hookimpl\ndef gemma4_device():\n    return []")
    found = row("toy")
    assert found["status"] == "loaded" and "'gemma4_devices'" in found["error"]


def test_a_commands_row_says_what_the_command_does(dists: Dists) -> None:
    source = """
        import click, sys

        sys.modules[__name__] = click.Command("toycommand", help="Play with a toy.")
    """
    dists.add(source, "toycommand", "gemma4-cmd", "2.0", "gemma4.commands")
    found = row("toycommand", "--kind", "command")
    assert (found["kind"], found["status"], found["summary"]) == ("command", "loaded", "Play with a toy.")
    assert (found["distribution"], found["version"]) == ("gemma4-cmd", "2.0")


def test_a_command_that_does_not_import_is_failed(dists: Dists) -> None:
    dists.add("raise RuntimeError('broken')", "toycommand", "gemma4-cmd", "2.0", "gemma4.commands")
    found = row("toycommand", "--kind", "command")
    assert found["status"] == "failed" and "broken" in found["error"] and "gemma4-cmd 2.0" in found["error"]


def test_two_commands_with_one_name(dists: Dists) -> None:
    dists.add("", "toycommand", "gemma4-a", "1", "gemma4.commands")
    dists.add("", "ToyCommand", "gemma4-b", "2", "gemma4.commands")
    found = [item for item in rows() if item["name"].lower() == "toycommand"]
    assert [item["status"] for item in found] == ["failed", "failed"]
    assert all("gemma4-a 1" in item["error"] and "gemma4-b 2" in item["error"] for item in found)


def test_a_command_that_one_of_ours_shadows(dists: Dists) -> None:
    dists.add("", "plugins", "gemma4-a", "1", "gemma4.commands")
    ours, found = sorted((item for item in rows("--kind", "command") if item["name"] == "plugins"),
                         key=lambda item: item["distribution"] == "gemma4-a")
    assert ours["status"] == "loaded" and found["status"] == "failed" and "'plugins'" in found["error"]
    assert run().stdout.count("gemma4 has its own command") == 1


def test_a_blocked_command(dists: Dists, monkeypatch: pytest.MonkeyPatch) -> None:
    dists.add("", "toycommand", "gemma4-a", "1", "gemma4.commands")
    monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", "toycommand")
    assert row("toycommand")["status"] == "blocked"


def test_the_kind_filters(dists: Dists) -> None:
    dists.add(OPTIMIZER.format(name="fine"))
    dists.add("1 / 0", "bad", "gemma4-bad")
    assert "fine" in {item["name"] for item in rows("--kind", "OPTIMIZER")}
    assert {item["kind"] for item in rows("--kind", "optimizer")} == {"optimizer"}
    assert {item["kind"] for item in rows("--kind", "device")} == {"device"}


def test_an_unknown_kind_is_a_usage_error() -> None:
    result = CliRunner().invoke(plugins_command, ["--kind", "colour"])
    assert result.exit_code == 2 and result.stdout == ""
    assert "'colour'" in result.stderr.splitlines()[-1]


def test_the_table_for_people(dists: Dists) -> None:
    dists.add("raise ValueError('a \\x1b[31mred\\nerror')", "bad", "gemma4-bad")
    text = run().stdout
    header, *lines = text.splitlines()
    assert header.split() == ["NAME", "KIND", "STATUS", "FROM", "SUMMARY"]
    assert any(line.split()[:3] == ["cpu", "device", "loaded"] for line in lines)
    assert "gemma4-bad 1.2.3" in text and "ValueError: a [31mred error" in text and "\x1b" not in text
