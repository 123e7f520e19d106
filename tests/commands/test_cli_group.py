"""The group: help, unknown commands, laziness, commands of plugins, exit codes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import SOURCE, Ran, environment, failure, gemma4

import gemma4_core.cli.commands as commands

NUMBERS = itertools.count()
SEEN = """
import sys, json
from gemma4_core.cli import main
try:
    main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
heavy = ("tinygrad", "numpy", "gemma4_plugins", "jinja2", "huggingface_hub")
names = [name for name in sys.modules if name.split(".")[0] in heavy]
print(json.dumps([code, names]), file=sys.stderr)
"""


def distribution(tmp_path: Path, name: str, entry: str, module: str = "") -> None:
    """A distribution on ``sys.path`` that declares one command."""
    info = tmp_path / f"{name}-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\nSummary: Brews tea.\n")
    (info / "entry_points.txt").write_text(f"[gemma4.commands]\n{entry}\n")
    if module:
        (tmp_path / f"{name}_module.py").write_text(module)


TEA = """
import click
@click.command()
@click.option("--cups", type=int, default=1)
def tea(cups):
    "Make tea."
    if cups > 9:
        raise RuntimeError("the pot\\nis too small")
    click.echo("tea " * cups)
    return 7
"""


def test_help_lists_commands_and_imports_neither_tinygrad_nor_plugins() -> None:
    command = [sys.executable, "-c", SEEN, "--help"]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    code, imported = json.loads(ran.stderr.splitlines()[-1])
    assert code == 0 and imported == []
    for name in ("generate", "chat", "info", "plugins", "download", "demo"):
        assert f"\n  {name} " in ran.stdout


def test_importing_the_package_imports_neither_tinygrad_nor_click() -> None:
    code = "import sys, gemma4_core.cli; print([n for n in ('tinygrad', 'click', 'numpy') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_listed_command_loads() -> None:
    """Its line in the list, read without importing it, is its module's docstring."""
    for entry in commands.commands().values():
        assert commands.load_command(entry).name == entry.name
        assert commands.summary(entry) == (sys.modules[entry.entry_point.module].__doc__ or "").splitlines()[0]


def test_a_command_whose_module_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "hollow", "nothing = hollow.deeper.nowhere:tea")
    monkeypatch.syspath_prepend(tmp_path)
    assert "(from hollow 2.5)" in gemma4("--help").out and "hollow.deeper" not in sys.modules
    assert "'nothing' of hollow 2.5 failed to load" in failure("nothing")


def test_unknown_command_is_a_usage_error_with_a_suggestion() -> None:
    ran = gemma4("genrate")
    assert ran.code == 2 and ran.out == ""
    assert ran.err.splitlines()[0].startswith("Usage: gemma4")
    assert ran.err.splitlines()[-1] == "Error: No such command 'genrate', did you mean 'generate'?"


def test_no_command_shows_help_on_stderr() -> None:
    ran = gemma4()
    assert ran.code == 2 and ran.out == "" and "generate" in ran.err and ran.err.strip().endswith("Missing command.")


def test_control_characters_of_a_command_are_escaped() -> None:
    ran = gemma4("a\nb\x1b[31m")
    assert ran.code == 2 and ran.err.splitlines()[-1] == r"Error: No such command 'a\nb\x1b[31m'."


def test_version_names_both_packages() -> None:
    ran = gemma4("--version")
    assert ran.code == 0 and "tinygrad-gemma4" in ran.out and "tinygrad " in ran.out


@pytest.fixture
def tea(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    distribution(tmp_path, "teapot", "tea = teapot_module:tea", TEA)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_plugins_command_is_listed_without_being_imported_and_runs(tea: Path) -> None:
    listed = gemma4("--help")
    assert "Brews tea. (from teapot 2.5)" in listed.out and "teapot_module" not in sys.modules
    assert gemma4("tea", "--cups", 2) == Ran(0, "tea tea \n", "")


def test_a_plugins_exception_is_one_line(tea: Path) -> None:
    assert failure("tea", "--cups", 10) == "Error: RuntimeError: the pot is too small (GEMMA4_DEBUG=1 shows where)"


def test_a_blocked_command_is_gone(tea: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", "Tea")
    assert "Brews tea" not in gemma4("--help").out and gemma4("tea").code == 2


@pytest.mark.parametrize(("module", "words"), [
    ("1/0\n", "ZeroDivisionError"),
    ("raise SystemExit(3)\n", "SystemExit"),
    ("tea = 5\n", "is int"),
    ("", "AttributeError"),
])
def test_a_broken_command_fails_only_when_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    name = f"broken{next(NUMBERS)}"
    distribution(tmp_path, name, f"broken = {name}_module:tea", module or "pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert gemma4("--help").code == 0
    line = failure("broken")
    assert words in line and f"{name} 2.5" in line and "'broken'" in line


def test_two_distributions_with_one_command_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("potone", "pottwo"):
        distribution(tmp_path, name, "brew = teapot_module:tea")
    monkeypatch.syspath_prepend(tmp_path)
    line = failure("brew")
    assert "potone" in line and "pottwo" in line


def test_a_plugin_cannot_take_a_command_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "thief", "info = thief_module:tea", TEA)
    monkeypatch.syspath_prepend(tmp_path)
    assert gemma4("--help").out.count("\n  info ") == 1 and "Show sizes, parameters" in gemma4("info", "--help").out


def test_ctrl_c_is_130_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import click\n@click.command()\ndef tea():\n    raise KeyboardInterrupt\n"
    distribution(tmp_path, "stopped", "stopped = stopped_module:tea", body)
    monkeypatch.syspath_prepend(tmp_path)
    ran = gemma4("stopped")
    assert ran.code == 130 and ran.err.strip() == ""


@pytest.mark.parametrize(("raised", "words"), [
    ("MemoryError()", "out of memory"),
    ("RecursionError('x')", "nested too deeply"),
    ("OSError(28, 'No space left on device', '/data/x')", "/data/x: No space left on device; free some space"),
    ("EOFError('ran out')", "ended too early: ran out"),
    ("ExceptionGroup('all', [ValueError('first one')])", "ValueError: first one"),
    ("__import__('subprocess').CalledProcessError(1, ['clang'], stderr=b'x\\n<stdin>:3: error: no bf16\\n')",
     "clang failed with exit code 1: <stdin>:3: error: no bf16"),
    ("SystemExit('went wrong')", "Error: went wrong"),
    ("ValueError('y' * 3000)", "ValueError: yyy"),
])
def test_every_exception_is_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: str, words: str
) -> None:
    name = f"raises{next(NUMBERS)}"
    distribution(tmp_path, name, f"raises = {name}_module:tea",
                 f"import click\n@click.command()\ndef tea():\n    raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert words in failure("raises")


def test_debug_shows_traceback_and_all_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = ("import click\nfrom gemma4_core.errors import summarise\n@click.command()\ndef tea():\n"
            "    raise summarise('missing tensors', [f't{i}' for i in range(9)], 'model.safetensors')\n")
    distribution(tmp_path, "faulty", "faulty = faulty_module:tea", body)
    monkeypatch.syspath_prepend(tmp_path)
    assert "9 missing tensors: t0; t1; t2; and 6 more" in failure("faulty")
    monkeypatch.setenv("GEMMA4_DEBUG", "1")
    ran = gemma4("faulty")
    assert ran.code == 1 and "Traceback" in ran.err and "\nt8\n" in ran.err
    assert ran.err.splitlines()[-1].startswith("Error: ")


def run_real(*args: str, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemma4_core.cli", *args]
    return subprocess.run(command, env=environment(), text=True, stderr=subprocess.PIPE, timeout=60, **settings)  # type: ignore[call-overload]


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as out:
        ran = run_real("info", "--size", "E2B", stdout=out)
    assert ran.returncode == 1
    hint = "free some space or choose another folder"
    assert ran.stderr.splitlines() == [f"Error: standard output: No space left on device; {hint}"]


def test_a_closed_pipe_is_quiet() -> None:
    import os

    reader, writer = os.pipe()
    os.close(reader)
    ran = run_real("info", "--size", "E2B", stdout=writer)
    os.close(writer)
    assert ran.returncode == 1 and ran.stderr == ""


def test_closed_streams_do_no_harm() -> None:
    shell = f'PYTHONPATH="{SOURCE}" "{sys.executable}" -m gemma4_core.cli info --size E2B <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell], timeout=60).returncode == 0


def test_shell_completion_lists_commands() -> None:
    from click.shell_completion import ShellComplete

    from gemma4_core.cli import cli

    found = ShellComplete(cli, {}, "gemma4", "_GEMMA4_COMPLETE").get_completions([], "ge")
    assert [item.value for item in found] == ["generate"]
