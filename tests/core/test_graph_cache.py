"""Captured graphs on disk: what a later process gets of them, and when they are left alone."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_tools import environment
from short_models import few_layers_config
from tinygrad import Tensor

from gemma4_core import load_pretrained
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.engine import graph_cache, graph_files
from gemma4_core.engine.choosing import Chooser
from gemma4_core.engine.portable import PortableSteps
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops.graphs import CapturedGraph

PROMPT = [2, 5, 9, 11, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("kept") / "model", few_layers_config())


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_loops: None) -> Path:
    """Where they are kept."""
    for name, value in (("GEMMA4_KEEP_GRAPHS", "1"), ("GEMMA4_KERNELS", "portable"), ("XDG_CACHE_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    return tmp_path / "gemma4" / "graphs"


def flipped(data: bytes) -> bytes:
    """With one bit in a thousand bytes another."""
    found = bytearray(data)
    found[40::1000] = bytes(byte ^ 4 for byte in found[40::1000])
    return bytes(found)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped bits": flipped,
    "cut": lambda data: data[: len(data) // 2],
    "no digest": lambda data: data[graph_files.DIGEST :],
    "garbage": lambda data: b"\x80\x05" + bytes(100),
    "empty": lambda data: b"",
}


def is_whole(file: Path) -> bool:
    data = file.read_bytes()
    return graph_files.digest(file, memoryview(data)[graph_files.DIGEST :]) == data[: graph_files.DIGEST]


def opened(folder: Path) -> GemmaModel:
    return load_pretrained(folder, device="cpu", modalities=("text",))


def answers(model: GemmaModel) -> list[list[int]]:
    """Greedy and drawn."""
    greedy = list(model.generate(PROMPT, 4, stop_ids=()))
    return [greedy, list(model.generate(PROMPT, 4, stop_ids=(), temperature=1.0, seed=3))]


def captured_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the text model's functions fail where they are traced."""

    def function(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise AssertionError("traced again")

        return run

    for name in ("_chunk_function", "_token_function", "_rows_function"):
        monkeypatch.setattr(PortableSteps, name, function)
    monkeypatch.setattr(Chooser, "choose", function())


@pytest.mark.slow
def test_a_later_model_traces_nothing_and_reads_its_own_weights(
    folder: Path, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answers(opened(folder))
    files = {file.name for file in graphs.iterdir()}
    assert len(files) >= 4 and all(file.stat().st_mode & 0o777 == 0o600 for file in graphs.iterdir())
    other = write_random_checkpoint(tmp_path / "other", few_layers_config(), seed=1)
    monkeypatch.setenv("GEMMA4_KEEP_GRAPHS", "0")
    expected = answers(opened(other))
    assert expected != first
    monkeypatch.setenv("GEMMA4_KEEP_GRAPHS", "1")
    captured_nothing(monkeypatch)
    assert answers(opened(folder)) == first
    assert answers(opened(other)) == expected
    assert {file.name for file in graphs.iterdir()} == files


@pytest.mark.parametrize("fault", ["damage", "others may write", "another version"])
def test_a_file_that_cannot_be_trusted_or_read_is_captured_anew(
    folder: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    greedy = list(opened(folder).generate(PROMPT, 3, stop_ids=()))
    for number, file in enumerate(graphs.iterdir()):
        if fault == "damage":
            file.write_bytes([*DAMAGE.values()][number % len(DAMAGE)](file.read_bytes()))
        elif fault == "others may write":
            file.chmod(0o620)
    if fault == "another version":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.14.1")
    before = len(list(graphs.iterdir()))
    fetched: list[object] = []
    plain = graph_cache.GraphCache.fetch
    monkeypatch.setattr(
        graph_cache.GraphCache, "fetch", lambda kept, key: fetched.append(plain(kept, key)) or fetched[-1]
    )
    assert list(opened(folder).generate(PROMPT, 3, stop_ids=())) == greedy
    assert fetched and not any(fetched)
    if fault == "damage":  # the files were deleted and written again
        assert all(is_whole(file) for file in graphs.iterdir())
    assert len(list(graphs.iterdir())) == before * (2 if fault == "another version" else 1)


def test_graphs_of_unidentifiable_code_are_not_stored(
    folder: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(folder)
    assert graph_cache.can_be_stored(model)
    linear = model.operations.linear
    with monkeypatch.context() as patch:
        patch.setattr(model, "transformed", True)
        assert not graph_cache.can_be_stored(model)
    with monkeypatch.context() as patch:
        patch.setattr("gemma4_core.ops._portable.linear", lambda x, matrix: linear(x, matrix))
        assert not graph_cache.can_be_stored(model)
    with monkeypatch.context() as patch:
        patch.setattr(type(next(iter(model.places.values())).matrix), "__module__", "elsewhere.formats")
        assert not graph_cache.can_be_stored(model)
    monkeypatch.setenv("GEMMA4_KEEP_GRAPHS", "0")
    assert not graph_cache.can_be_stored(model)


def test_what_matrices_were_made_with_is_part_of_the_key(folder: Path, graphs: Path) -> None:
    model = opened(folder)
    matrix: Any = next(iter(model.places.values())).matrix
    paths = [graph_cache.GraphCache(model, None, {}).path("graph")]
    matrix.group = 32
    paths.append(graph_cache.GraphCache(model, None, {}).path("graph"))
    matrix.group = 64
    paths.append(graph_cache.GraphCache(model, None, {}).path("graph"))
    assert len(set(paths)) == 3
    for unknown in (Tensor([1.0]), lambda x: x, object(), [object()]):
        matrix.group = unknown
        assert not graph_cache.can_be_stored(model)


THIRD_PARTY = """
from gemma4_core.ops import portable
from gemma4_fast.shared import TOKEN

def sample(logits, state, position):
    token, logprob = portable().sample(logits, state, position)
    return token * 0 + TOKEN, logprob
"""
WITH_THIRD_PARTY = """
import sys, dataclasses
from pathlib import Path
from gemma4_core import load_pretrained
from gemma4_core.engine.choosing import Chooser
from gemma4_core.engine.portable import PortableSteps
from gemma4_fast.operations import sample

if sys.argv[2] == "stored":
    for name in ("_chunk_function", "_token_function", "_rows_function"):
        setattr(PortableSteps, name, lambda *_, **__: lambda *_: sys.exit("traced again"))
    Chooser.choose = lambda *_: sys.exit("traced again")
model = load_pretrained(sys.argv[1], device="cpu", modalities=("text",))
if sys.argv[2] == "closure":
    inner = sample
    sample = lambda *given: inner(*given)
model.operations = dataclasses.replace(model.operations, sample=sample)
print(list(model.generate([2, 5, 9, 11, 7], 3, stop_ids=())))
"""


@pytest.mark.slow
def test_operations_of_another_package_are_kept_while_its_files_are_the_same(folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "packages" / "gemma4_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "operations.py").write_text(THIRD_PARTY)
    shared = package / "shared.py"
    shared.write_text("TOKEN = 7\n")
    variables = environment() | {"GEMMA4_KEEP_GRAPHS": "1", "GEMMA4_KERNELS": "portable", "NOOPT": "1",
                                 "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    variables["PYTHONPATH"] = os.pathsep.join([str(package.parent), variables.get("PYTHONPATH", "")])

    def run(kind: str) -> tuple[str, set[str]]:
        command = [sys.executable, "-c", WITH_THIRD_PARTY, str(folder), kind]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout, {file.name for file in (tmp_path / "gemma4" / "graphs").glob("*.graph")}

    answer, files = run("new")
    assert files
    assert run("stored") == (answer, files)
    # another file of the package, of the same size and with the old time of writing
    status = shared.stat()
    shared.write_text("TOKEN = 9\n")
    os.utime(shared, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed, more = run("new")
    assert (answer, changed) == ("[7, 7, 7]\n", "[9, 9, 9]\n") and more > files
    assert run("closure") == (changed, more)  # what it closes over cannot be told


def test_a_package_that_changes_while_it_runs_is_not_kept(
    folder: Path, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gemma4_late.py").write_text("def rms_norm(x, weight, eps): return x")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = opened(folder)
    rms_norm = importlib.import_module("gemma4_late").rms_norm
    model.operations = dataclasses.replace(model.operations, rms_norm=rms_norm)
    assert not graph_cache.can_be_stored(model)


def test_a_graph_that_reads_an_unnamed_buffer_is_not_stored(folder: Path, graphs: Path) -> None:
    model = opened(folder)
    hidden = Tensor([1.0, 2.0, 3.0], device=model.device).contiguous().realize()
    given = Tensor([4.0, 5.0, 6.0], device=model.device).contiguous().realize()
    kept = graph_cache.GraphCache(model, None, {})
    graph = CapturedGraph(lambda x: (x + hidden).contiguous().realize(), kept, "secret")
    assert graph(given).tolist() == [5.0, 7.0, 9.0]
    assert not graphs.exists() or not list(graphs.iterdir())
    kept = graph_cache.GraphCache(model, None, {"h": hidden})
    named = CapturedGraph(lambda x: (x + hidden).contiguous().realize(), kept, "told")
    assert named(given).tolist() == [5.0, 7.0, 9.0] and len(list(graphs.iterdir())) == 1
    [file] = graphs.iterdir()
    whole = file.read_bytes()
    for number in range(0, len(whole) * 8, 997):
        one_bit = bytearray(whole)
        one_bit[number // 8] ^= 1 << number % 8
        file.write_bytes(one_bit)
        assert kept.fetch("told") is None and not file.exists(), number
    for name, damage in DAMAGE.items():
        file.write_bytes(damage(whole))
        assert kept.fetch("told") is None and not file.exists(), name
    file.with_name(kept.path("another").name).write_bytes(whole)
    assert kept.fetch("another") is None and not list(graphs.iterdir())
    file.write_bytes(whole)
    file.chmod(0o600)
    assert kept.fetch("told") is not None


def test_the_least_recently_used_are_deleted(
    folder: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_files, "MAX_FILES", 2)
    answers(opened(folder))
    assert len(list(graphs.iterdir())) == 2


def test_the_leftovers_of_killed_processes_go(folder: Path, graphs: Path) -> None:
    graphs.mkdir(parents=True)
    graphs.parent.chmod(0o700)
    old, new = graphs / ".a.graph.0123.tmp", graphs / ".b.graph.4567.tmp"
    for file in (old, new):
        file.touch()
    os.utime(old, (1, 1))
    list(opened(folder).generate(PROMPT, 2, stop_ids=()))
    assert new.exists() and not old.exists()


WRITER = """
import os, sys
from pathlib import Path
from gemma4_core.checkpoint.atomic import atomic_file
from gemma4_core.engine.graph_files import DIGEST, digest, make_room
path, number = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for turn in range(int(sys.argv[3])):
    content = memoryview(bytes([number]) * (50_000 + 1000 * turn))
    with atomic_file(path) as file:
        file.write(digest(path, content))
        file.write(content)
    make_room(path.parent)
    found = path.read_bytes()
    assert digest(path, memoryview(found)[DIGEST:]) == found[:DIGEST], "torn"
"""


def test_many_writers_of_one_file_and_kills_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one.graph"
    start = lambda number, turns: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", WRITER, str(path), str(number), str(turns)], env=environment(), stdout=subprocess.PIPE
    )
    endless, bounded = [start(number, 1 << 30) for number in range(3)], [start(number, 40) for number in range(3, 7)]
    for process in [*endless, *bounded]:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in endless:
        time.sleep(0.05)
        process.kill()
        process.wait()
    assert [process.wait(120) for process in bounded] == [0] * 4
    assert subprocess.run([sys.executable, "-c", WRITER, str(path), "9", "1"], env=environment(), check=True)
    assert is_whole(path) and os.listdir(tmp_path) == ["one.graph"]  # the next writer sweeps what killed ones left
    for process in [*endless, *bounded]:
        assert process.stdout is not None
        process.stdout.close()
