"""The matrix: a row for everything that was asked for, whatever becomes of it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark_tools import SCRIPTS, bench, good, refused, script
from cli_tools import environment, gemma4
from tiny_model import write_tiny_checkpoint

from gemma4_core import load_pretrained
from gemma4_core.errors import DeviceError, InputError
from gemma4_plugins.commands.bench.speed import prompt_ids

COUNT = 7


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints as ``gemma4 download`` and ``gemma4 quantize`` leave them; every token would end an answer."""
    folder = tmp_path_factory.mktemp("models")
    model = write_tiny_checkpoint(folder / "gemma-4-E2B", towers=False)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(512))}))
    assert gemma4("quantize", "--models-dir", folder, "--sizes", "E2B").code == 0
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table(models: Path) -> Path:
    """The table of a small matrix, by the script as a user starts it."""
    out = models / "results" / "x.csv"
    args = ["--models-dir", models, "--sizes", "E2B", "E4B", "--formats", "bf16", "int8", "--devices", "cpu", "nowhere",
            "--beams", "0", "--max-new-tokens", COUNT, "--out", out, "--progress-every", "2", "--no-bandwidth"]
    command = [sys.executable, str(SCRIPTS / "matrix.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert len(done.stdout.splitlines()) == 8 and "E2B int8 on cpu" in done.stdout
    return out


def test_rows(table: Path, models: Path) -> None:
    found = rows(table)
    assert [(row["size"], row["format"], row["device"]) for row in found] == [
        (size, form, device) for size in ("E2B", "E4B") for form in ("bf16", "int8") for device in ("cpu", "nowhere")]
    for row in found:
        expected = {"nowhere": "unavailable"}.get(row["device"], "ok" if row["size"] == "E2B" else "missing")
        assert row["status"] == expected and row["max_new_tokens"] == str(COUNT) and row["beam"] == "0"
        assert bool(row["error"]) == (expected != "ok")
    assert "nowhere" in found[1]["error"] and "gemma4 quantize" in found[6]["error"]
    for row in (found[0], found[2]):
        assert row["generated_tokens"] == str(COUNT) and len(row["tokens_sha256"]) == 64
        assert float(row["tokens_per_second"]) > 0 and int(row["peak_memory_bytes"]) > 10_000_000
        gigabytes = int(row["bytes_per_token"]) * float(row["tokens_per_second"]) / 1e9
        assert float(row["effective_gbps"]) == pytest.approx(gigabytes, rel=1e-4)
        assert row["read_gbps_before"] == row["percent_of_limit"] == ""  # not asked for
    assert 0.5 < int(found[2]["bytes_per_token"]) / int(found[0]["bytes_per_token"]) < 0.6


def test_hash_and_bytes_are_those_of_the_model(table: Path, models: Path) -> None:
    model = load_pretrained(models / "gemma-4-E2B", device="cpu", modalities=("text",))
    prompt = prompt_ids(model, 32)
    ids = list(model.generate(prompt, COUNT, stop_ids=()))
    assert len(ids) == COUNT and list(model.generate(prompt, COUNT)) == []  # any token ends an answer of this folder
    row = rows(table)[0]
    assert row["tokens_sha256"] == hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
    matrices = [w.matrix.shape for name, w in model.places.items() if "embed_tokens_per_layer" not in name]
    assert 1 <= int(row["bytes_per_token"]) / sum(2 * a * b for a, b in matrices) < 1.02


def test_progress_log(table: Path) -> None:
    lines = [json.loads(line) for line in Path(f"{table}.progress.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines if line["event"] == "row"] == list(range(1, 9))
    first = lines[: next(i for i, line in enumerate(lines) if line["event"] == "done")]
    assert [line["event"] for line in first] == ["row", "loaded", "warm", "tokens", "tokens", "tokens"]
    assert [line["tokens"] for line in first[3:]] == [2, 4, 6] and first[0]["device"] == "cpu"


def started(monkeypatch: pytest.MonkeyPatch, code: str) -> list[Any]:
    """Let rows run this program instead; the cells that were started."""
    seen: list[Any] = []

    def child(cell: Any, settings: Any, progress: Path) -> list[str]:
        seen.append(cell)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(script("matrix"), "child", child)
    return seen


def test_resume_measures_what_is_not_ok(
    table: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.csv"
    out.write_bytes(table.read_bytes())
    args = ["--models-dir", models, "--sizes", "E2B", "--formats", "bf16", "int8", "--devices", "cpu", "nowhere",
            "--max-new-tokens", COUNT, "--out", out, "--no-bandwidth"]
    seen = started(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    line = refused("matrix", *args)
    assert str(out) in line and "--resume" in line and out.read_bytes() == table.read_bytes() and not seen
    good("matrix", *args, "--resume")
    assert [(cell.format, cell.device) for cell in seen] == [("bf16", "nowhere"), ("int8", "nowhere")]
    old, new = rows(table), rows(out)
    assert [new[i] for i in (0, 2, 4, 5, 6, 7)] == [old[i] for i in (0, 2, 4, 5, 6, 7)]
    assert new[1]["status"] == "crashed" and "SIGKILL" in new[1]["error"] and "memory" in new[1]["error"]
    seen.clear()
    good("matrix", *args[:-4], "9", *args[-3:], "--resume")  # another number of tokens is another row
    assert len(seen) == 4 and len(rows(out)) == 12


@pytest.mark.parametrize(("code", "status", "error"), [
    ("import os; os.abort()", "crashed", "SIGABRT"),
    ("print('{\"status\": \"out of memory\", \"error\": \"8 GB\"}'); raise SystemExit(1)", "out of memory", "8 GB"),
    ("raise ValueError('a plain defect')", "failed", "a plain defect"),
    ("print('nothing to parse')", "failed", "nothing to parse"),
    ("print('{\"score\": NaN}')", "failed", "NaN"),
    ("import time; time.sleep(60)", "timed out", "0.5"),
])  # fmt: skip
def test_every_end_is_a_row(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: str, error: str
) -> None:
    started(monkeypatch, code)
    limit = ["--row-seconds", "0.5"] if status == "timed out" else []
    good("matrix", "--models-dir", models, "--sizes", "E2B", "--devices", "cpu", "--out", tmp_path / "x.csv",
         "--no-bandwidth", *limit)
    [row] = rows(tmp_path / "x.csv")
    assert row["status"] == status and error in row["error"] and row["tokens_per_second"] == ""


def test_percent_of_the_larger_reading(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([40.0, 50.0, 20.0])
    monkeypatch.setattr(script("matrix"), "measured", lambda device: next(readings))
    started(monkeypatch, 'print(\'{"tokens_per_second": 2.5, "effective_gbps": 25.0}\')')
    good("matrix", "--models-dir", models, "--sizes", "E2B", "--formats", "bf16", "int8", "--devices", "cpu",
         "--out", tmp_path / "x.csv")  # fmt: skip
    found = [(row["read_gbps_before"], row["read_gbps_after"], row["percent_of_limit"]) for row in
             rows(tmp_path / "x.csv")]
    assert found == [("40", "50", "50"), ("50", "20", "50")]  # the end of one row is the beginning of the next


def test_the_table_is_whole_while_rows_run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGRAD_GEMMA_MAX_BEAM", raising=False)
    out = tmp_path / "x.csv"
    seen: list[int] = []

    def child(cell: Any, settings: Any, progress: Path) -> list[str]:
        seen.append(len(rows(out)))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return [sys.executable, "-c", "print('{}')"]

    monkeypatch.setattr(script("matrix"), "child", child)
    args = ["--models-dir", models, "--sizes", "E2B", "--devices", "cpu", "--beams", "0", "max", "3", "--out", out,
            "--no-bandwidth"]
    assert bench("matrix", *args).code == 130 and seen == [0, 1, 2]
    assert [(row["beam"], row["beam_width"]) for row in rows(out)] == [("0", "0"), ("max", "4")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.csv.progress.jsonl"]
    good("matrix", *args, "--resume")
    assert seen == [0, 1, 2, 2] and len(rows(out)) == 3


def test_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = started(monkeypatch, "")
    out = tmp_path / "x.csv"
    usual = ["--models-dir", models, "--devices", "cpu", "--out", out]
    assert "'wide'" in refused("matrix", *usual, "--sizes", "E2B", "--beams", "0", "wide", code=2)
    assert "'-1'" in refused("matrix", *usual, "--sizes", "E2B", "--beams=-1", code=2)
    assert "E3B" in refused("matrix", *usual, "--sizes", "E2B", "E3B")
    assert "int9" in refused("matrix", *usual, "--sizes", "E2B", "--formats", "int9")
    assert "'0'" in refused("matrix", *usual, "--sizes", "E2B", "--max-new-tokens", "0", code=2)
    assert "absent" in refused("matrix", "--models-dir", tmp_path / "absent", "--sizes", "E2B", "--out", out)
    assert not out.exists()
    for content in (b"a,b\n1,2\n", b"\xff\xfe\x00", b'"open', b"size,format\n", b"\n\n{}"):
        out.write_bytes(content)
        for more in ([], ["--resume"]):
            line = refused("matrix", *usual, "--sizes", "E2B", *more)
            assert str(out) in line and "nothing was changed" in line and out.read_bytes() == content
    out.unlink()
    good("matrix", *usual, "--sizes", "E2B", "--no-bandwidth")
    whole = out.read_bytes()
    out.write_bytes(whole[:-200])
    assert "row 2" in refused("matrix", *usual, "--sizes", "E2B", "--resume") and out.read_bytes() == whole[:-200]
    assert len(seen) == 1
    (tmp_path / "file").touch()
    assert "file" in refused("matrix", *usual[:-1], tmp_path / "file" / "x.csv", "--sizes", "E2B")


def test_folders(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = script("matrix")
    monkeypatch.chdir(models)
    assert matrix.folder_of("gemma-4-E2B", "bf16", None) == Path("gemma-4-E2B")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gemma4_core.checkpoint.snapshots.cached_snapshot", lambda name: Path("/cache") / name)
    assert matrix.folder_of("gemma-4-E2B", "bf16", None) == Path("/cache/google/gemma-4-E2B")
    assert matrix.folder_of("gemma-4-E2B", "int8", None) == Path("gemma-4-E2B-int8")
    found = matrix.cells(["e2b", "E4B-it", "E2B"], ["BF16"], ["CPU", "cpu"], [("0", 0)], [8], 4, models)
    assert [(cell.size, cell.folder, cell.device) for cell in found] == [
        ("E2B", models / "gemma-4-E2B", "cpu"), ("E4B-it", models / "gemma-4-E4B-it", "cpu")]


def test_two_at_once_are_refused(models: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "x.csv"
    with open(f"{out}.progress.jsonl", "w") as held:
        fcntl.flock(held.fileno(), fcntl.LOCK_EX)
        assert "another process" in refused("matrix", "--models-dir", models, "--sizes", "E2B", "--out", out)
        assert not rows(out)


def test_decode_alone(models: Path, tmp_path: Path) -> None:
    folder = models / "gemma-4-E2B"
    usual = ["--model-dir", folder, "--device", "cpu", "--no-bandwidth"]
    one = json.loads(good("decode", *usual, "--max-new-tokens", 1).out)
    assert one["generated_tokens"] == 1 and one["score"] is None and one["prompt_seconds"] > 0
    low = bench("decode", *usual, "--max-new-tokens", 3, "--min-score", "1e12")
    assert low.code == 1 and json.loads(low.out)["generated_tokens"] == 3 and "1e+12" in low.err
    line = refused("decode", *usual, "--max-new-tokens", 9_000_000)
    assert "9000000" in line and "context" in line
    reported = bench("decode", "--model-dir", tmp_path / "absent", "--device", "cpu", "--report-failure")
    assert json.loads(reported.out)["status"] == "failed" and reported.code == 1
    assert "nowhere" in json.loads(bench("decode", *usual[:2], "--device", "nowhere", "--report-failure").out)["error"]


def test_memory_that_does_not_suffice_is_told_apart(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = script("decode")

    def measure(*args: object) -> None:
        try:
            raise MemoryError("cuMemAlloc")
        except MemoryError as fault:
            raise DeviceError("CUDA has no room for the 10.2 GB of a table") from fault

    monkeypatch.setattr(decode, "measure", measure)
    ran = bench("decode", "--model-dir", models / "gemma-4-E2B", "--device", "cpu", "--report-failure")
    assert json.loads(ran.out) == {"status": "out of memory", "error": "CUDA has no room for the 10.2 GB of a table"}
    assert ran.code == 1


def test_a_child_ends_with_the_script(models: Path, tmp_path: Path) -> None:
    """Also where that is asked to end: no row goes on alone."""
    mark = tmp_path / "pid"
    text = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    command = [sys.executable, str(SCRIPTS / "paired.py"), "--baseline-command", "echo 1", "--candidate-command",
               "echo 1", "--baseline-command", f'{sys.executable} -c "{text}"']  # fmt: skip
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    assert gone(int(mark.read_text()))


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # ended, and soon collected
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


def test_a_child_ends_with_its_time(tmp_path: Path) -> None:
    payload = script("payload")
    inner = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    code = f"import subprocess, sys; child = subprocess.Popen({inner}); print(child.pid, flush=True); child.wait()"
    ended = payload.run([sys.executable, "-c", code], seconds=2)
    assert ended.code is None and gone(int(ended.out))
    with pytest.raises(InputError, match="no-such-program"):
        payload.run(["no-such-program"])
