"""Which compiler tinygrad's CPU device gets, on machines of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemma4_core.devices.machine import cache_dir
from gemma4_plugins.devices.native import compiler

GOOD = compiler._ziglang().path
"""The compiler that comes with the extra ``cpu``, which running the tests installs."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def works(path: Path, log: Path | None = None) -> Path:
    note = f"echo run >> '{log}'\n" if log else ""
    return script(path, f'{note}exec "{GOOD}" "$@"')


def fails(path: Path) -> Path:
    return script(path, 'echo "gcc: error: unrecognized command-line option \'--target=x\'" >&2; exit 1')


def test_trial_runs_the_compiler_as_tinygrad_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad.runtime.support import compiler_cpu

    calls: list[list[str]] = []
    monkeypatch.setattr(compiler_cpu.subprocess, "check_output", lambda args, **_: calls.append(args) or b"")
    arch = "arm64" if os.uname().machine in ("arm64", "aarch64") else "x86_64"
    compiler_cpu.ClangCompiler([arch, "native"]).compile("")
    assert calls[0][1:] == compiler.clang_arguments()


def test_usable_cc_of_the_user_is_taken(tmp_path: Path) -> None:
    mine = works(tmp_path / "with space" / "mycc")
    choice = compiler.choose({"CC": str(mine), "PATH": ""})
    assert (choice.name, choice.path, choice.passed) == (f"CC={mine}", str(mine), ())
    assert choice.version.startswith("clang version")


def test_cc_on_path_by_its_name(tmp_path: Path) -> None:
    mine = works(tmp_path / "bin" / "mycc")
    assert compiler.choose({"CC": "mycc", "PATH": str(mine.parent)}).path == str(mine)


@pytest.mark.parametrize("cc", ["gcc -O2", "/no/such/cc", "ccache clang"])
def test_cc_that_is_no_program_is_passed_over(cc: str) -> None:
    choice = compiler.choose({"CC": cc, "PATH": ""})
    assert choice.passed[0] == (f"CC={cc}", "is not the path of one program")
    assert choice.name == "ziglang"


def test_compiler_without_bf16_is_passed_over_with_its_own_words(tmp_path: Path) -> None:
    gcc = fails(tmp_path / "bin" / "gcc")
    choice = compiler.choose({"CC": str(gcc), "PATH": ""})
    assert choice.passed == (
        (f"CC={gcc}", "gcc: error: unrecognized command-line option '--target=x'"),
        ("clang", "is not on PATH"),
    )
    assert choice.name == "ziglang"
    assert choice.path == GOOD or Path(choice.path or "").parent == cache_dir()


def test_output_that_is_no_object_is_refused(tmp_path: Path) -> None:
    quiet = script(tmp_path / "bin" / "cc", "exit 0")
    assert compiler.choose({"CC": str(quiet), "PATH": ""}).passed[0][1] == "ended with exit code 0 and no object"


def test_newest_clang_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    fails(folder / "clang")
    fails(folder / "clang-21")
    works(folder / "clang-9")
    works(folder / "clang-19")
    script(folder / "clang-format", "exit 1")
    choice = compiler.choose({"PATH": str(folder)})
    assert Path(choice.name).name == "clang-19"
    assert [Path(name).name for name, _ in choice.passed] == ["clang", "clang-21"]


def test_verdicts_are_kept_until_the_compiler_changes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    mine = works(tmp_path / "bin" / "cc", log)
    environment = {"CC": str(mine), "PATH": ""}
    first = compiler.choose(environment)
    runs = log.read_text().count("run")
    assert runs == 2  # one compilation, one --version
    assert compiler.choose(environment) == first
    assert log.read_text().count("run") == runs
    os.utime(mine, (1, 1))
    assert compiler.choose(environment) == first
    assert log.read_text().count("run") == 2 * runs


def test_damaged_verdicts_are_made_again(tmp_path: Path) -> None:
    mine = works(tmp_path / "bin" / "cc")
    environment = {"CC": str(mine), "PATH": ""}
    compiler.choose(environment)
    for damage in ("", "[1, 2]", '{"a": 3}', "\x00"):
        compiler._verdict_file().write_text(damage)
        assert compiler.choose(environment).path == str(mine)


def test_hanging_compiler_is_passed_over_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "TRY_SECONDS", 0.3)
    slow = script(tmp_path / "bin" / "cc", "exec sleep 30")
    verdict = compiler._try_and_store(compiler.Candidate("cc", str(slow)), "key")
    assert verdict.why is not None and "did not finish" in verdict.why
    assert "key" not in compiler._read_verdicts()


def test_no_compiler_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    choice = compiler.choose({"CC": "gcc", "PATH": "/nowhere"})
    sentence = compiler.what_to_install(choice)
    assert choice.path is None
    assert "pip install ziglang" in sentence and "CC=gcc" in sentence and "\n" not in sentence


def test_shim_quotes_any_path(tmp_path: Path) -> None:
    folder = tmp_path / "it's a $(place)"
    zig = script(folder / "zig", 'printf "%s\\n" "$@"')
    shim = compiler.write_shim(zig, folder / "lib")
    out = subprocess.run([shim, "-x", "a b"], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["clang", "-resource-dir", str(folder / "lib"), "-x", "a b"]
    assert oct(shim.stat().st_mode & 0o777) == "0o700"
    assert compiler.write_shim(zig, folder / "lib") == shim
    shim.write_text("damaged")
    compiler.write_shim(zig, folder / "lib")
    assert "resource-dir" in shim.read_text()


CHILD = """
import sys
from tinygrad import Tensor, dtypes
from tinygrad.helpers import getenv
assert getenv("CC", "clang") == {asked!r}           # tinygrad has read it by now
from gemma4_plugins.devices.cpu import backend as cpu
assert cpu.unusable() is None, cpu.unusable()
x = Tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtypes.bfloat16, device="CPU")
y, z = x @ x, (x + 1).sum(0)
Tensor.realize(y, z)                                 # two kernels: compiled by worker processes
import tinygrad.engine.worker as worker
print(y.float().tolist(), z.float().tolist(), worker.worker_pool is not None)
"""


@pytest.mark.parametrize("asked", ["clang", "/no/such/gcc"])
def test_tinygrad_and_its_workers_get_the_compiler(asked: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("CC", "DEV", "CACHEDB")}
    environment |= {"PATH": "/nowhere", "HOME": str(tmp_path), "PARALLEL": "2"}
    if asked != "clang":
        environment["CC"] = asked
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(asked=asked)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "[[7.0, 10.0], [15.0, 22.0]] [6.0, 8.0] True"
    assert child.stderr == ""


def test_another_processor_has_another_kernel_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad import helpers

    monkeypatch.setattr(helpers, "CACHEDB", helpers.CACHEDB)
    monkeypatch.setattr(helpers, "_db_connection", None)
    choice, paths = compiler.CompilerChoice("clang", "/usr/bin/clang", "clang version 20"), []
    for processor in ("this", "that", "this"):
        monkeypatch.delenv("CACHEDB", raising=False)
        monkeypatch.setattr(compiler.machine, "processor", lambda name=processor: name)
        compiler.separate_cache(choice)
        paths.append(helpers.CACHEDB)
    assert paths[0] == paths[2] != paths[1]
    monkeypatch.setenv("CACHEDB", "/of/the/user.db")
    compiler.separate_cache(choice)
    assert paths[2] == helpers.CACHEDB
