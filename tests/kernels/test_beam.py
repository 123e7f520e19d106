"""tinygrad's kernel search within a budget."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import kernel_search as module
from gemma4_core.devices.kernel_search import KernelSearch, configure_search
from gemma4_core.errors import InputError
from gemma4_plugins.devices.native import compiler

SIDE = 16


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelSearch]:
    """A search of its own with few candidates, in this process, with an empty cache; nothing of it stays."""
    compiler.configure()
    from tinygrad import helpers
    from tinygrad.codegen import to_program_cache
    from tinygrad.codegen.opt import OptOps
    from tinygrad.codegen.opt import search as tinygrads
    from tinygrad.engine.realize import runtime_cache

    for name in ("beam_search", "_ensure_buffer_alloc", "_time_program", "_try_compile"):
        # an earlier test may have configured a search for this process
        monkeypatch.setattr(tinygrads, name, module.process.original(tinygrads, name))
    few = [a for a in tinygrads.actions if a.op in (OptOps.UPCAST, OptOps.UNROLL) and a.arg == 4 and a.axis == 0]
    monkeypatch.setattr(tinygrads, "actions", few)
    monkeypatch.setattr(helpers, "CACHEDB", str(tmp_path / "cache.db"))
    monkeypatch.setattr(helpers, "_db_connection", None)
    monkeypatch.setattr(helpers, "_db_tables", set())
    for variable in (helpers.BEAM, helpers.PARALLEL):
        monkeypatch.setattr(variable, "value", 0)
    monkeypatch.setenv("PARALLEL", "0")
    monkeypatch.setenv("BEAM_TIMEOUT_SEC", "5")
    monkeypatch.setattr(module.process, "replaced", dict(module.process.replaced))
    for name in ("beam_search", "_ensure_buffer_alloc", "_time_program", "_try_compile"):
        module.process.replaced.pop((tinygrads, name), None)
    fresh = KernelSearch()
    monkeypatch.setattr(module, "kernel_search", fresh)
    to_program_cache.clear()
    runtime_cache.clear()
    yield fresh
    to_program_cache.clear()
    if helpers._db_connection is not None:
        helpers._db_connection.close()


def product() -> Any:
    """One kernel, compared with numpy."""
    from tinygrad import Tensor

    a = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE) / SIDE**2
    x = Tensor(a, device="CPU").realize()
    np.testing.assert_allclose((x @ x).numpy(), a @ a, rtol=1e-4)


def forget_programs() -> None:
    from tinygrad.codegen import to_program_cache

    to_program_cache.clear()


def kept_results() -> int:
    from tinygrad import helpers

    tables = helpers.db_connection().execute("select name from sqlite_master where name like 'beam_search%'").fetchall()
    return sum(helpers.db_connection().execute(f"select count(*) from '{name}'").fetchone()[0] for (name,) in tables)


def test_search_is_kept_on_disk_and_found_without_budget(search: KernelSearch) -> None:
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=60))
    product()
    assert (search.searched, search.skipped, kept_results()) == (1, 0, 1)
    assert 0 < search.spent < 60
    search.seconds = 0
    forget_programs()
    product()
    assert (search.searched, search.skipped) == (2, 0)


def test_without_budget_the_heuristics_decide_and_nothing_is_kept(search: KernelSearch) -> None:
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=0))
    product()
    assert (search.searched, search.skipped, kept_results()) == (0, 1, 0)


def test_search_that_the_budget_cuts_short_is_not_kept(search: KernelSearch) -> None:
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=1e-6))
    product()
    assert (search.searched, search.skipped, kept_results()) == (0, 1, 0)
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=60))
    forget_programs()
    product()
    assert (search.searched, kept_results()) == (1, 1)


def test_heuristics_are_those_of_tinygrad(search: KernelSearch) -> None:
    from tinygrad.codegen import to_program_cache

    product()
    plain = {p.src[2].arg for p in to_program_cache.values()}
    forget_programs()
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=0))
    product()
    assert {p.src[2].arg for p in to_program_cache.values()} == plain


def test_kernel_that_may_run_for_seconds_is_not_searched(search: KernelSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.SLOW_TARGETS, "CPU", SIDE**3 - 1)
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=60))
    product()
    assert (search.searched, search.skipped, kept_results()) == (0, 1, 0)


def test_candidate_without_memory_falls_back(search: KernelSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad.codegen.opt import search as tinygrads

    def full(bufs: list[Any]) -> list[Any]:
        raise MemoryError("device is full")

    monkeypatch.setattr(tinygrads, "_ensure_buffer_alloc", full)
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=60))
    product()
    assert (search.searched, search.skipped, kept_results()) == (0, 1, 0)


def test_kernels_with_options_of_their_own_are_not_searched(search: KernelSearch) -> None:
    from tinygrad import Tensor
    from tinygrad.uop.ops import KernelInfo, UOp

    def twice(out: UOp, x: UOp) -> UOp:
        i = UOp.range(16, 0)
        return out[i].store(x[i] * 2).end(i).sink(arg=KernelInfo("twice", opts_to_apply=()))

    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=60))
    x = Tensor(np.arange(16, dtype=np.float32), device="CPU").realize()
    out = Tensor.empty(16, device="CPU").custom_kernel(x, fxn=twice)[0]
    assert out.tolist() == [2.0 * i for i in range(16)]
    assert (search.searched, search.skipped) == (0, 0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_only_on_a_terminal(search: KernelSearch, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_search("CPU", DeviceSettings(beam=2, beam_seconds=60))
    product()
    search.seconds = 0
    forget_programs()
    progress = stream.getvalue()
    product()
    if terminal:
        assert "kernel search: 1 kernels" in progress and progress.endswith("\r\033[K")
        assert stream.getvalue().count("(--beam-seconds allows more") == 1
    else:
        assert stream.getvalue() == ""


def test_cpu_and_python_backends_get_compile_workers(search: KernelSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad.helpers import BEAM, PARALLEL

    monkeypatch.setattr(module.machine, "cpu_count", lambda: 7)
    configure_search("CPU", DeviceSettings(beam=2))
    assert (BEAM.value, PARALLEL.value, os.environ["PARALLEL"]) == (2, 0, "0")  # the user's own
    for target, beam, workers in [("METAL", 2, None), ("CPU", 0, None), ("PYTHON", 1, "7"), ("CPU", 1, "7")]:
        monkeypatch.delenv("PARALLEL", raising=False)
        configure_search(target, DeviceSettings(beam=beam))
        assert os.environ.get("PARALLEL") == workers
        assert BEAM.value == beam
    assert PARALLEL.value == 7


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "soon", None, True])
def test_bad_budget(search: KernelSearch, seconds: Any) -> None:
    with pytest.raises(InputError, match=f"--beam-seconds '{seconds}'"):
        configure_search("CPU", DeviceSettings(beam=1, beam_seconds=seconds))


def test_workers_compile_candidates(search: KernelSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad.engine import worker
    from tinygrad.helpers import PARALLEL

    worker.terminate_worker_pool()
    PARALLEL.value = 1
    configure_search("CPU", DeviceSettings(beam=1, beam_seconds=60))
    product()
    assert (search.searched, worker.worker_pool is not None) == (1, True)
    worker.terminate_worker_pool()
