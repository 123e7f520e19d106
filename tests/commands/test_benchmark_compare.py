"""Comparisons with other engines, with programs that stand for these; the cold start; plots."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_tools import ROOT, SCRIPTS, bench, good, refused, script
from cli_tools import environment
from tiny_model import write_tiny_checkpoint

from gemma4_core.errors import InputError

FAKE_PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
echo "$@" >> {log}
echo '{{"prompt_tokens_per_second": 100.0, "tokens_per_second": 4.0, "version": "fake"}}'
"""
FAKE_BENCH = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *"-p 0"*) rate=5.0;; *) rate=50.0;; esac
echo "loading" >&2
echo '{{"build_number": 7, "build_commit": "abc", "avg_ts": '$rate'}}'
"""
CONVERTER = {
    "conversion.py": """
class Model:
    pass
def get_model_class(name):
    assert name == "Gemma4ForCausalLM"
    return Model
""",
    "gguf-py/gguf.py": """
import enum
from types import SimpleNamespace as Some
class GGUFValueType(enum.Enum):
    STRING, ARRAY, INT32 = range(3)
class GGUFReader:
    def __init__(self, path):
        assert path.name == "ggml-vocab-gemma-4.gguf"
        text, array, number = GGUFValueType.STRING, GGUFValueType.ARRAY, GGUFValueType.INT32
        self.fields = {"tokenizer.ggml.model": Some(types=[text], contents=lambda: "gemma"),
                       "tokenizer.ggml.scores": Some(types=[array, number], contents=lambda: [1, 2]),
                       "general.name": Some(types=[text], contents=lambda: "not this")}
""",
    "convert_hf_to_gguf.py": """
import json, sys
from pathlib import Path
from types import SimpleNamespace as Some
from conversion import get_model_class
model, taken = get_model_class("Gemma4ForCausalLM")(), []
model.gguf_writer = Some(add_key_value=lambda *a, **k: taken.append([a[0], a[1], a[2].name, *map(str, k)]))
model.set_vocab()
out = sys.argv[sys.argv.index("--outfile") + 1]
folder = Path(sys.argv[1])
tokens = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
seen = [tokens, str((folder / "config.json").resolve().parent)]
Path(out).write_text(json.dumps([taken, seen, sys.argv[1:]]))
""",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "demo", towers=False)


def program(path: Path, text: str, log: Path) -> Path:
    """An executable script."""
    path.write_text(text.format(log=log))
    path.chmod(0o755)
    return path


@pytest.fixture
def peers(tmp_path: Path) -> dict[str, Path]:
    """A Python with transformers, a llama-bench, and sources of llama.cpp; none of them real. They log their calls."""
    sources = tmp_path / "llama.cpp"
    for name, text in CONVERTER.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    log = tmp_path / "log"
    return {"python": program(tmp_path / "python", FAKE_PYTHON, log), "log": log, "sources": sources,
            "bench": program(tmp_path / "bench", FAKE_BENCH, log)}  # fmt: skip


def test_engines_by_turns(
    model: Path, peers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter(range(30, 100))
    told = "dict(tokens_per_second=8.0, prompt_tokens_per_second=200, args=sys.argv)"
    ours = f"import json, sys; print(json.dumps({told}))"
    monkeypatch.setattr(script("peers"), "python", lambda *args: [sys.executable, "-c", ours, *map(str, args)])
    monkeypatch.setattr(script("compare"), "measured", lambda device: float(next(readings)))
    root, out = tmp_path / "work", tmp_path / "made" / "x.json"
    root.mkdir()
    (root / "demo-bf16.gguf").touch()
    (root / "demo-q8_0.gguf").touch()
    ran = good("compare", "--model-dir", model, "--root", root, "-p", 24, "-n", 6, "--rounds", 2, "--threads", 2,
               "--python", peers["python"], "--llama-bench", peers["bench"], "--out", out)  # fmt: skip
    report = json.loads(out.read_text())
    entries = {entry["name"]: entry for entry in report["engines"]}
    assert list(entries) == ["ours bf16", "ours int8", "transformers", "llama.cpp bf16", "llama.cpp q8_0"]
    assert all(len(entry["runs"]) == 2 and not entry["error"] for entry in entries.values()), entries
    read = [(run["read_gbps_before"], run["read_gbps_after"]) for entry in entries.values() for run in entry["runs"]]
    assert sorted(read) == [(float(n), float(n + 1)) for n in range(30, 40)]
    asked = " ".join(entries["ours int8"]["runs"][1]["args"])
    assert f"decode.py --model-dir {root / 'demo-int8'} --device cpu --format int8 --prompt-length 24" in asked
    assert asked.endswith("--max-new-tokens 7") and (root / "demo-int8/config.json").is_file()
    assert entries["llama.cpp q8_0"]["prompt_tokens_per_second"] == 50
    assert entries["transformers"]["tokens_per_second"] == 4
    assert report["ratios"]["decode: ours int8 / llama.cpp q8_0"] == 8 / 5
    assert set(report["ratios"]) == {f"{what}: ours {pair}" for what in ("prompt", "decode") for pair in (
        "bf16 / transformers", "bf16 / llama.cpp bf16", "int8 / llama.cpp q8_0")}
    calls = peers["log"].read_text().splitlines()
    assert f"peer_transformers.py {model} --device cpu --threads 2 --prompt-tokens 24 --new-tokens 6" in calls[0]
    assert f"-m {root / 'demo-bf16.gguf'} -r 1 -o jsonl -t 2 -ngl 0 -p 24 -n 0" in calls[1]
    assert "-p 0 -n 6 -d 24" in calls[2] and len(calls) == 10
    assert "| llama.cpp q8_0 | 50 | 5 | " in ran.out and "decode: ours int8 / llama.cpp q8_0" in ran.out


def test_what_is_absent_is_said(model: Path, peers: dict[str, Path], tmp_path: Path) -> None:
    usual = ["--model-dir", model, "--root", tmp_path, "--no-bandwidth", "--rounds", 1, "--engines", "transformers",
             "transformers-compiled", "llama.cpp"]
    ran = good("compare", *usual, "--python", "/no/python", "--llama-bench", "/no/bench")
    absent = {entry["name"]: entry["absent"] for entry in json.loads(ran.out)["engines"]}
    assert "/no/python" in absent["transformers"] and "--python" in absent["transformers"]
    assert "--llama-bench" in absent["llama.cpp q8_0"] and "GPU" in absent["transformers-compiled"]
    assert json.loads(ran.out)["ratios"] == {} and ran.err == ""
    ran = good("compare", *usual, "--python", peers["python"], "--llama-bench", peers["bench"])
    absent = {entry["name"]: entry["absent"] for entry in json.loads(ran.out)["engines"]}
    assert absent["transformers"] is None and "--llama-cpp" in absent["llama.cpp bf16"]


def test_gguf_is_converted_with_the_vocabulary_of_the_sources(
    model: Path, peers: dict[str, Path], tmp_path: Path
) -> None:
    module = script("peers")
    test = module.Test(model, tmp_path, "cpu", ("bf16",), 8, 2, 1)
    tools = module.Tools(sys.executable, str(peers["bench"]), peers["sources"])
    file = module.gguf(test, tools, "q8_0")
    taken, seen, arguments = json.loads(file.read_text())
    scores = ["tokenizer.ggml.scores", [1, 2], "ARRAY", "sub_type"]
    assert taken == [["tokenizer.ggml.model", "gemma", "STRING"], scores]
    config = json.loads((model / "config.json").read_text())
    assert seen == [config.get("text_config", config)["vocab_size"], str(model.resolve())]
    assert arguments[-2:] == ["--outtype", "q8_0"] and not Path(arguments[0]).exists()
    stamp = file.stat().st_mtime_ns
    assert module.gguf(test, tools, "q8_0") == file and file.stat().st_mtime_ns == stamp
    (peers["sources"] / "conversion.py").write_text("raise ImportError('too old')")
    with pytest.raises(InputError, match="too old"):
        module.gguf(test, tools, "bf16")
    assert sorted(path.name for path in tmp_path.glob("demo-*")) == ["demo-q8_0.gguf"]


def test_an_engine_that_fails_does_not_stop_the_others(
    model: Path, peers: dict[str, Path], tmp_path: Path
) -> None:
    text = "#!/bin/sh\n[ \"$1\" = -c ] && exit 0\necho no memory >&2; exit 1\n"
    broken = program(tmp_path / "broken", text, tmp_path)
    for quant in ("bf16", "q8_0"):
        (tmp_path / f"demo-{quant}.gguf").touch()
    ran = good("compare", "--model-dir", model, "--root", tmp_path, "--no-bandwidth", "--rounds", 2, "--engines",
               "transformers", "llama.cpp", "--python", broken, "--llama-bench", peers["bench"])  # fmt: skip
    entries = {entry["name"]: entry for entry in json.loads(ran.out)["engines"]}
    assert "no memory" in entries["transformers"]["error"] and entries["transformers"]["tokens_per_second"] is None
    assert entries["llama.cpp bf16"]["tokens_per_second"] == 5 and len(entries["llama.cpp bf16"]["runs"]) == 2
    table = script("compare").as_markdown(json.loads(ran.out))
    assert "| transformers | transformers: exit code 1: no memory | | |" in table


def test_random_weights_go_unless_kept(tmp_path: Path) -> None:
    usual = ["--size", "TINY-31b", "--root", tmp_path, "--no-bandwidth", "--engines", "llama.cpp", "--llama-bench",
             "/no"]
    assert json.loads(good("compare", *usual).out)["checkpoint"] == "TINY-31b" and list(tmp_path.iterdir()) == []
    good("compare", *usual, "--keep")
    config = json.loads((tmp_path / "gemma4-compare-tiny-31b/tiny-31b/config.json").read_text())
    assert config["model_type"] == "gemma4_text"


def test_compare_refuses(model: Path, tmp_path: Path) -> None:
    assert "--size" in refused("compare", code=2)
    assert "--model-dir" in refused("compare", "--size", "E2B", "--model-dir", model, code=2)
    assert "E9B" in refused("compare", "--size", "E9B", "--root", tmp_path)
    assert "config.json" in refused("compare", "--model-dir", tmp_path)
    assert "mlx" in refused("compare", "--model-dir", model, "--engines", "mlx", code=2)
    bad = {"[]": "JSON", '{"avg_ts": "fast"}': "avg_ts", '{"avg_ts": NaN}': "NaN", "": "nothing"}
    for said, complaint in bad.items():
        with pytest.raises(InputError, match=complaint):
            script("peers").from_llama([said, said], "llama.cpp q8_0")


STAGES = """
import json, os, sys, time
from pathlib import Path
caches = Path(os.environ["XDG_CACHE_HOME"])
assert Path(os.environ["CACHEDB"]).parent == Path(os.environ["CUDA_CACHE_PATH"]).parent == caches
seconds = 0.05 if (caches / "full").exists() else 0.5
(caches / "full").touch()
now = time.time()
print(json.dumps({"imported": now, "loaded": now + 0.1, "first_token": now + 0.1 + seconds, "token": 7, "device": "cpu",
                  "format": "bf16"}))
"""


def test_cold_start(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script("cold_start"), "python", lambda *args: [sys.executable, "-c", STAGES])
    args = ["--model-dir", model, "--device", "cpu", "--runs", 2, "--out", tmp_path / "x.json"]
    report = json.loads(good("cold_start", *args).out)
    assert json.loads((tmp_path / "x.json").read_text()) == report
    assert report["cold"]["first_token_seconds"] == pytest.approx(0.5, abs=1e-5)  # the first finds empty caches
    assert [run["first_token_seconds"] for run in report["runs"]] == pytest.approx([0.05, 0.05], abs=1e-5)
    assert (report["warm"]["load_seconds"], report["device"]) == (pytest.approx(0.1, abs=1e-5), "cpu")
    for run in (report["cold"], *report["runs"]):
        stages = ("import_seconds", "load_seconds", "first_token_seconds")
        assert run["import_seconds"] > 0 and run["total_seconds"] == pytest.approx(sum(run[name] for name in stages))
    assert report["file_bytes"] == sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert report["load_of_plain_read"] == report["warm"]["load_seconds"] / report["plain_read_seconds"]


def test_one_start(model: Path, tmp_path: Path) -> None:
    told = json.loads(good("cold_start", "--model-dir", model, "--device", "cpu", "--once").out)
    assert told["imported"] < told["loaded"] < told["first_token"] and told["device"] == "cpu"
    assert "absent" in refused("cold_start", "--model-dir", tmp_path / "absent")
    assert "nowhere" in refused("cold_start", "--model-dir", model, "--device", "nowhere")


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table of the matrix."""
    module = script("matrix_table")
    written = module.Table(path, [])
    for row in rows:
        written.put({"format": "int8", "device": "cpu", "beam": "0", "max_new_tokens": 64, "status": "ok", **row})
    return path


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"size": size, "prompt_tokens": length, "tokens_per_second": rate, "percent_of_limit": percent}
            for size, length, rate, percent in (("E2B", 32_768, 300.5, 40.0), ("E2B", 512, 400.0, None),
                                                ("31B", 512, 40.0, 83.2))]  # fmt: skip
    rows.append({"size": "E4B", "prompt_tokens": 32, "status": "unavailable", "error": "no such device"})
    path = table(tmp_path / "x.csv", rows)
    plot = script("plot")
    found = plot.points([path])
    assert plot.lines(found) == {"E2B int8, cpu": ([544.0, 32_800.0], [400.0, 300.5]),
                                 "31B int8, cpu": ([544.0], [40.0])}  # fmt: skip
    assert {size: point.rate for size, point in plot.best(found)["int8, cpu"].items()} == {"E2B": 400.0, "31B": 40.0}
    figure = plot.draw(found, "a title")
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["E2B int8, cpu", "31B int8, cpu"]
    assert [bar.get_height() for bar in right.patches] == [400.0, 40.0] and figure.get_suptitle() == "a title"
    assert [text.get_text() for text in right.texts] == ["", "83 %"]
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        out = tmp_path / "made" / f"x{suffix}"
        assert good("plot", path, "--out", out).out == f"{out}\n" and out.read_bytes().startswith(start)


def test_plot_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = table(tmp_path / "x.csv", [{"size": "E2B", "prompt_tokens": 1, "status": "missing"}])
    out = tmp_path / "x.svg"
    assert "x.csv" in refused("plot", empty, "--out", out)
    assert "absent.csv" in refused("plot", tmp_path / "absent.csv", "--out", out)
    assert "x.gif" in refused("plot", empty, "--out", tmp_path / "x.gif", code=2)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "other.csv has other columns" in refused("plot", tmp_path / "other.csv", "--out", out)
    odd = table(tmp_path / "odd.csv", [{"size": "E2B", "prompt_tokens": "many", "tokens_per_second": 1.0}])
    assert "many" in refused("plot", odd, "--out", out)
    fine = table(tmp_path / "fine.csv", [{"size": "E2B", "prompt_tokens": 1, "tokens_per_second": 1.0}])
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install matplotlib" in refused("plot", fine, "--out", out) and not out.exists()


def test_lines_of_the_pages_parse() -> None:
    pages = [ROOT / "docs" / "benchmarks.md", SCRIPTS / "targets.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", "")
    lines = re.findall(r"^python benchmarks/(\w+)\.py (.*)$", text, re.MULTILINE)
    assert {name for name, _ in lines} >= {"decode", "matrix", "paired", "inventory", "compare", "cold_start", "plot"}
    for name, rest in lines:
        command = getattr(script(name), f"{name}_command")
        assert command.make_context(name, shlex.split(rest)).params
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target


NAMES = ("decode", "matrix", "paired", "inventory", "compare", "cold_start", "plot", "bandwidth")


@pytest.mark.parametrize("name", NAMES)
def test_scripts_start_alone(name: str) -> None:
    """From the repository's root, as the pages have it."""
    command = [sys.executable, f"benchmarks/{name}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.startswith(f"Usage: python benchmarks/{name}.py ") and done.stderr == ""


def test_bandwidth_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("bandwidth")
    monkeypatch.setattr("gemma4_plugins.commands.bench.bandwidth.read_bandwidth", lambda backend: 51_234_567_890.0)
    assert json.loads(good("bandwidth", "--device", "CPU").out) == {"device": "cpu", "gbps": 51.23}
    assert bench("bandwidth", "--device", "nowhere").code == 1 and module.measured("nowhere") is None
    for said, meant in (('{"gbps": 12.5}', 12.5), ('{"gbps": null}', None), ("nonsense", None)):
        ended = script("payload").Ended(0, said, "")
        monkeypatch.setattr(module, "run", lambda *args, ended=ended, **more: ended)
        assert module.measured("cpu") == meant
