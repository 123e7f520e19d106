"""``gemma4 bench`` and ``gemma4 bench ops``: what they print, and that they count right. No times are asserted."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4, usage
from reference_data import load
from short_models import short_folder
from tinygrad import UOp
from tinygrad.uop import Ops
from training_tools import quick

from gemma4_core import load_pretrained
from gemma4_core.model import GemmaModel
from gemma4_core.ops import portable
from gemma4_core.ops.graphs import CapturedGraph
from gemma4_plugins.commands.bench import operations, speed
from gemma4_plugins.commands.bench.command import bench_report, times_line
from gemma4_plugins.commands.bench.operations_command import ops_command
from gemma4_plugins.commands.bench.operations_command import row as ops_row
from gemma4_plugins.commands.bench.traffic import cache_bytes, weight_bytes
from gemma4_plugins.devices.cpu import bandwidth

E2B, MOE = load("e2b").folder, load("moe").folder
CLI = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is measured by a test of its own."""
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda: 2e10)


@pytest.fixture(scope="module")
def moe() -> GemmaModel:
    return load_pretrained(MOE, device="cpu", modalities=("text",))


def test_json() -> None:
    ran = gemma4("bench", "-m", E2B, "-p", 20, "-n", 4, 6, "-d", "0,8", "-r", 2, "--device", "CPU", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    tests = ["pp20", "tg4", "tg6", "pp20 @ d8", "tg4 @ d8", "tg6 @ d8"]
    assert [row["test"] for row in found["results"]] == tests
    for row in found["results"]:
        assert len(row["samples"]) == 2 and min(row["samples"]) > 0
        assert row["tokens_per_second"] == pytest.approx(np.mean(row["samples"]))
        assert row["deviation"] == pytest.approx(np.std(row["samples"], ddof=1))
        assert (row["gigabytes_per_second"] is None) == (row["new_tokens"] == 0)
    answer = found["results"][1]
    rate = answer["bytes_per_token"] * answer["tokens_per_second"]
    assert answer["gigabytes_per_second"] == pytest.approx(rate / 1e9)
    assert answer["percent_of_read"] == pytest.approx(100 * rate / found["read_bytes_per_second"])
    assert found["score"] == answer["tokens_per_second"] and math.isfinite(found["score"])
    assert (found["device"], found["format"], found["dtype"]) == ("cpu", "bf16", "bfloat16")
    assert found["kernels_for"] == {"prefill": "cpu", "decode": "cpu"} and "threads" in found["device_details"]
    assert min(found[key] for key in ("load_seconds", "first_token_seconds", "peak_memory_bytes")) > 0
    assert found["first_prompt_tokens"] == 20
    assert found["kernels_per_token"] == 1  # one C call


def test_tables() -> None:
    ran = gemma4("bench", "-m", E2B, "-p", 0, "-n", 2, "-r", 1, "--device", "cpu")
    assert (ran.code, ran.err) == (0, "")
    head, rule, row, empty, times, machine = ran.out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)]
    assert dict(zip(*cells, strict=True))["kernels"] == "cpu" and dict(zip(*cells, strict=True))["test"] == "tg2"
    assert re.fullmatch(r"\| [-:| ]+ \|", rule) and len(head) == len(rule) == len(row) and not empty
    assert "loaded in" in times and "peak memory" in times and machine.startswith("cpu reads 20.0 GB/s")
    ran = gemma4("bench", "-m", E2B, "-p", 3, "-n", 2, "-r", 1, "-o", "csv", "--device", "cpu")
    prompt, answer = csv.DictReader(io.StringIO(ran.out))
    assert (prompt["test"], prompt["bytes_per_token"], answer["decode_kernels"]) == ("pp3", "", "cpu")
    assert float(answer["tokens_per_second"]) > 0 and answer["deviation"] == "0.0"


def test_whose_kernels_run_is_told(moe: GemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert moe.engine.device_steps(moe.make_cache().reserve(moe, 1, 8)) == ("decode", "prefill")
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    plain = load_pretrained(MOE, device="cpu")
    assert plain.engine.device_steps(plain.make_cache().reserve(plain, 1, 8)) == ()
    found = bench_report(plain, speed.Speed([speed.Result(7, 0, 0, (3.0, 5.0))]))
    assert found["kernels_for"] == {"prefill": "portable", "decode": "portable"} and found["score"] == 4.0


@pytest.mark.usefixtures("plain_loops")
def test_portable_kernels_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    plain = load_pretrained(short_folder("e2b"), device="cpu")
    found = bench_report(plain, speed.measure(plain, speed.Workload((), (2,), (0,), 1)))
    layers = plain.config.text_config.num_hidden_layers
    assert layers < found["kernels_per_token"] < 60 * layers
    assert found["kernels_per_layer"] == found["kernels_per_token"] / layers
    assert f"{found['kernels_per_token']:,} kernels a token" in times_line(found)
    none = bench_report(plain, speed.measure(plain, speed.Workload((2,), (), (0,), 1)))
    assert none["kernels_per_token"] is None and none["kernels_per_layer"] is None


def test_kernels_of_a_devices_own_layers_are_told_apart(moe: GemmaModel) -> None:
    layers = moe.config.text_config.num_hidden_layers
    own = speed.Speed([speed.Result(0, 7, 0, (3.0, 5.0))], step_kernels=8 * layers + 9, layer_kernels=8 * layers)
    found = bench_report(moe, own)
    assert (found["kernels_per_token"], found["kernels_per_layer"]) == (8 * layers + 9, 8.0)
    assert found["kernels_for"] == {"prefill": "portable", "decode": moe.operations.name}


def test_kernels_within_a_batch_are_counted() -> None:
    from tinygrad.engine.jit import create_graph_call

    one = UOp(Ops.PROGRAM).call()
    graph = CapturedGraph(lambda: None)
    assert graph.kernels == 0
    graph.jit.captured = SimpleNamespace(linear=UOp(Ops.LINEAR, src=(one, create_graph_call([one, one, one]))))
    assert graph.kernels == 4


def test_faults() -> None:
    assert "--model-dir" in usage("bench")
    assert "--model-dir" in usage("bench", "ops")
    assert "nothing to measure" in usage("bench", "-m", E2B, "-p", 0, "-n", 0)
    assert "'many'" in usage("bench", "-m", E2B, "-p", "many")
    assert "'0'" in usage("bench", "-m", E2B, "-r", 0)
    assert "opz" in usage("bench", "opz")
    assert "xml" in usage("bench", "-m", E2B, "-o", "xml")
    line = failure("bench", "-m", E2B, "-p", 512, "-d", 5000)
    assert "a context of 5512" in line and str(E2B) in line and "--depth" in line
    assert "'absent'" in failure("bench", "-m", "absent", "--device", "cpu").replace('"', "'")
    assert "abacus" in failure("bench", "-m", E2B, "--device", "abacus")
    assert "int9" in failure("bench", "-m", E2B, "--format", "int9")
    assert "linea" in (line := failure("bench", "ops", "-m", E2B, "--only", "linea")) and "linear" in line
    assert "a context of 5001" in failure("bench", "ops", "-m", E2B, "-d", 5000)


def test_results_are_of_the_tokens_asked_for(moe: GemmaModel) -> None:
    workload = speed.Workload((6,), (3,), (4,), 2)
    assert workload.positions == 10
    told: list[str] = []
    found = speed.measure(moe, workload, told.append)
    assert [result.test for result in found.results] == ["pp6 @ d4", "tg3 @ d4"] and len(told) == 3
    ids = speed.prompt_ids(moe, 500)
    assert ids[:10] == speed.prompt_ids(moe, 10) and len(set(ids)) > 100
    bench = speed.Bench(moe, ids[:10], 4, workload)
    bench.prompt(6)
    assert bench.cache.length == 10 and bench.cache.tokens == ids[:10]
    bench.answer(3)
    assert bench.cache.length == 4 + 3 and bench.cache.tokens[:4] == ids[:4]
    assert speed.Result(0, 3, 0, (2.0,), 10).deviation == 0 and speed.Result(0, 3, 0, (2.0,), 10).bytes_per_second == 20


def test_bytes_of_a_token() -> None:
    for name in ("e2b", "moe"):
        model = load_pretrained(load(name).folder, device="cpu")
        text = model.config.text_config
        expected = 0.0
        for key, tensor in model.named_tensors().items():
            share = 1 / text.vocab_size_per_layer_input if "embed_tokens_per_layer" in key else 1
            share = text.top_k_experts / text.num_experts if ".experts." in key else share
            expected += tensor.nbytes() * share
        assert weight_bytes(model) == pytest.approx(expected, abs=2)
    layers = text.layers
    windows = [min(100, x.window or 100) for x in layers]
    rows = [2 * 2 * x.num_key_value_heads * x.head_dim for x in layers]
    assert cache_bytes(model, 100) == sum(map(math.prod, zip(windows, rows, strict=True)))


# --------------------------------------------------------------------------------------------- operations


def test_every_operation_has_a_line(moe: GemmaModel) -> None:
    fields = {field.name for field in dataclasses.fields(portable())}
    assert {*operations.NAMES, *operations.SETTINGS, "step"} - {*operations.STEPS} == fields
    cases = [*operations.Cases(moe, 1, 8).all(operations.NAMES)]
    assert {case.operation for case in cases} == set(operations.NAMES)
    brought = {case.operation for case in cases if case.own is not None}
    table = moe.operations
    fields = {name: "step" if name in operations.STEPS else name for name in operations.NAMES}
    assert brought == {n for n, f in fields.items() if getattr(table, f) is not getattr(portable(), f)} != set()


def test_overrides_are_measured_beside_the_portable_form(moe: GemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def mine(x: Any, weight: Any, eps: float) -> Any:
        calls.append(x.shape)
        return portable().rms_norm(x, weight, eps)

    monkeypatch.setattr(moe, "operations", dataclasses.replace(portable(), name="mine", rms_norm=mine))
    with quick():
        norm, greedy, sampled = operations.measure(moe, ("rms_norm", "sample"), rows=2)
    hidden = moe.config.text_config.hidden_size
    assert calls == [(1, 2, hidden)] * moe.config.num_hidden_layers
    assert norm.seconds and norm.portable_seconds > 0 and norm.nbytes == 2 * hidden * 2 + 2 * hidden
    assert norm.bytes_per_second == norm.nbytes / norm.seconds
    assert greedy.seconds is None and greedy.shape.endswith("greedy") and "top-k" in sampled.shape
    assert greedy.bytes_per_second == greedy.nbytes / greedy.portable_seconds


def test_ops_command() -> None:
    arguments = ("bench", "ops", "-m", MOE, "--device", "cpu", "--only", "rms_norm", "-d", 8)
    with quick():
        found = json.loads(gemma4(*arguments, "--json").out)
        ran = gemma4(*arguments)
    [norm] = found["operations"]
    assert (norm["operation"], norm["form"], norm["times_portable"]) == ("rms_norm", "portable", None)
    assert norm["gigabytes_per_second"] == pytest.approx(norm["bytes"] / norm["microseconds"] / 1e3)
    assert norm["percent_of_read"] == pytest.approx(100 * norm["gigabytes_per_second"] / 20)
    assert ran.err == "" and "| rms_norm  | 1 x 40 | portable |" in ran.out and "cpu reads 20.0 GB/s" in ran.out


def test_rows_of_a_devices_own_steps() -> None:
    step = ops_row(operations.Line("decode_step", "1 token", 6000, 2e-6, 8e-6), 1e10)
    assert (step["form"], step["times_portable"], step["microseconds"]) == ("own", 4.0, 2.0)
    assert (step["gigabytes_per_second"], step["percent_of_read"]) == (3.0, 30.0)
    assert step["portable_gigabytes_per_second"] == 0.75


def test_options_of_the_sub_command_are_described() -> None:
    flags = {flag for param in ops_command.params for flag in param.opts}
    assert all(re.search(rf"[ `]{re.escape(flag)}\b", CLI) for flag in flags)
