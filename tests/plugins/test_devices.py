"""Choosing a device, and what each says where it cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemma4_core import devices
from gemma4_core.contracts import Context, DeviceBackend, DeviceSettings
from gemma4_core.devices import machine
from gemma4_core.errors import DeviceError, InputError, PluginError
from gemma4_core.plugins import registry
from gemma4_plugins.devices import amd, generic, metal, nv, probing
from gemma4_plugins.devices.cuda import backend as cuda

SETTINGS = DeviceSettings()


@pytest.fixture(autouse=True)
def own_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test does to tinygrad's DEV is undone."""
    from tinygrad.helpers import DEV

    monkeypatch.setattr(DEV, "_value", list(DEV.value))
    monkeypatch.setattr(devices.process, "dev", devices.process.dev)
    monkeypatch.setenv("DEV", os.environ.get("DEV", ""))


# ------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize("name", ["cpu", "CPU", "Cpu", "cpu:0", "auto"])
def test_cpu_by_name(name: str) -> None:
    backend, target = devices.activate(name, SETTINGS)
    from tinygrad import Device

    assert (backend.name, target, Device.DEFAULT) == ("cpu", "CPU", "CPU")
    assert os.environ["DEV"] == "CPU"


def test_unknown_device_is_named() -> None:
    with pytest.raises(PluginError, match=r"'gpu9'.*cuda"):
        devices.activate("gpu9", SETTINGS)


def test_second_device_of_a_kind_is_refused_with_a_next_step() -> None:
    with pytest.raises(DeviceError, match=r"'CUDA:1'.*CUDA_VISIBLE_DEVICES=1"):
        devices.activate("CUDA:1", SETTINGS)


def test_unusable_device_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(DeviceError, match=r"'metal' cannot be used: Metal needs macOS"):
        devices.activate("metal", SETTINGS)


def test_failing_prepare_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(settings: DeviceSettings) -> None:
        raise RuntimeError("no\nluck")

    broken = DeviceBackend("broken", "", "CPU", lambda: None, prepare)
    monkeypatch.setattr(registry, "select_device", lambda name: broken)
    with pytest.raises(DeviceError, match="device broken could not be prepared: RuntimeError: no luck"):
        devices.activate("auto", SETTINGS)


def test_auto_prefers_accelerators() -> None:
    order = sorted(registry.devices.values(), key=lambda d: -d.priority)
    assert [d.name for d in order[:5]] == ["metal", "cuda", "nv", "amd", "cpu"]


def test_auto_keeps_to_the_users_dev() -> None:
    from tinygrad.helpers import DEV

    matching = lambda: [d.name for d in registry.matching("device", Context())]  # noqa: E731
    DEV.value = ""
    assert matching() == ["metal", "cuda", "nv", "amd", "cpu"]
    DEV.value = "CPU:LLVM"
    assert matching() == ["cpu"]
    DEV.value = "PCI:0+AMD"
    assert matching() == ["amd"]
    DEV.value = "CL"
    assert matching() == ["tinygrad"]


def test_our_own_choice_does_not_bind_the_next() -> None:
    from tinygrad.helpers import DEV

    DEV.value = ""
    devices.set_default_device("CPU")
    assert devices.requested_target() is None
    devices.set_default_device("METAL")
    assert devices.requested_target() is None
    DEV.value = "CUDA"
    assert devices.requested_target() == "CUDA"
    devices.set_default_device("CPU")
    assert devices.requested_target() == "CUDA"


def test_renderers_and_interfaces_of_the_user_stay() -> None:
    from tinygrad.helpers import DEV

    DEV.value = "CUDA:PTX;CPU:LLVM"
    devices.set_default_device("CPU")
    assert repr(DEV) == os.environ["DEV"] == "CPU:LLVM;CUDA:PTX"


# ------------------------------------------------------------------------------------------------ each device


def test_cuda_names_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "AttributeError: failed to load library cuda: try setting CUDA_PATH?": "install the NVIDIA driver",
        "AttributeError: failed to load library nvrtc: …": "CUDA toolkit",
        "RuntimeError: CUDA Error 100, no CUDA-capable device is detected": "CUDA_VISIBLE_DEVICES",
        "RuntimeError: CUDA Error 2, out of memory": "out of memory",
    }
    for reason, said in cases.items():
        monkeypatch.setattr(cuda, "open_device", lambda target, reason=reason: reason)
        assert said in (cuda.unusable() or "")


def test_nv_and_amd_do_not_look_for_pci_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> str:
        raise AssertionError("opened")

    for module in (nv, amd):
        monkeypatch.setattr(module, "open_device", never)
        monkeypatch.setattr(module, "CONTROL", "/no/such/device")
        assert "/no/such/device is absent" in (module.unusable() or "")


def test_nv_knows_no_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nv, "CONTROL", "/dev/null")
    monkeypatch.setattr(nv, "open_device", lambda *args, **kwargs: "StopIteration")
    assert "use --device cuda" in (nv.unusable() or "")


def test_interface_is_pinned_unless_dev_names_one() -> None:
    from tinygrad.helpers import DEV

    DEV.value = "CPU:LLVM"
    assert [repr(t) for t in probing._device_spec("AMD", "KFD")] == ["KFD+AMD", "CPU:LLVM"]
    DEV.value = "USB+AMD"
    assert [repr(t) for t in probing._device_spec("AMD", "KFD")] == ["USB+AMD"]


def test_metal_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert "this is linux" in (metal.unusable() or "")


def test_generic_backend_follows_dev() -> None:
    from tinygrad.helpers import DEV

    DEV.value = "CPU"
    assert generic.gemma4_devices()[0].target == generic.UNNAMED
    assert "DEV=CL" in (generic.gemma4_devices()[0].unusable() or "")
    DEV.value = "NULL"
    named = generic.gemma4_devices()[0]
    assert (named.target, named.unusable()) == ("NULL", None)
    DEV.value = "FOO"
    assert "'FOO', which tinygrad does not have" in (generic.gemma4_devices()[0].unusable() or "")


def test_python_backend_computes() -> None:
    backend, target = devices.activate("python", SETTINGS)
    from tinygrad import Tensor

    assert (backend.name, target) == ("python", "PYTHON")
    assert (Tensor([1, 2, 3], device=target) * 2).tolist() == [2, 4, 6]


# ------------------------------------------------------------------------------------------------ opening


def test_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probing._within(0.1, lambda: time.sleep(5)) == "its driver did not answer within 0 s"
    monkeypatch.setattr(probing, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(probing, "CHILD", "import time; time.sleep(30)")
    assert "did not answer" in (probing.open_device("AMD", isolated=True) or "")


def test_driver_that_kills_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "signal 11" in (probing.open_device("AMD", isolated=True) or "")


def test_reason_of_a_device_that_does_not_open() -> None:
    reason = probing.open_device("QCOM", isolated=True)
    assert reason is not None and "kgsl" in reason
    assert reason == probing.open_device("QCOM")


# ------------------------------------------------------------------------------------------------ the machine


def test_cores_follow_affinity_and_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_cgroup_folders", lambda: iter([tmp_path / "a", tmp_path]))
    assert machine.cpu_count() == 8
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cpu.max").write_text("250000 100000\n")
    assert machine.cpu_count() == 2
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine.cpu_count() == 1


def test_memory_follows_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = machine.free_memory_bytes()
    assert free is not None and 0 < free <= (machine.total_memory_bytes() or 0)
    monkeypatch.setattr(machine, "_cgroup_folders", lambda: iter([tmp_path]))
    (tmp_path / "memory.max").write_text("1000000")
    (tmp_path / "memory.current").write_text("700000")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 200000\n")
    assert machine.free_memory_bytes() == 500000


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999999999999999999"])
def test_thread_count_out_of_range(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA4_THREADS", value)
    with pytest.raises(DeviceError, match=f"GEMMA4_THREADS='{value}'"):
        machine.thread_count()


def test_thread_count_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMMA4_THREADS", raising=False)
    monkeypatch.setenv("NUM_CPU_THREADS", "5")
    assert machine.thread_count() == 5
    monkeypatch.setenv("GEMMA4_THREADS", "3")
    assert machine.thread_count() == 3


def test_free_memory_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (devices.free_memory_bytes("CPU") or 0) > 0
    assert devices.free_memory_bytes("QCOM") is None
    broken = DeviceBackend("x", "", "X", lambda: None, free_memory=lambda: 1 // 0)
    monkeypatch.setattr(registry, "devices", {"x": broken})
    assert devices.free_memory_bytes("X:1") is None


def test_a_device_whose_staging_fails_is_loaded_without(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = DeviceBackend("x", "", "X", lambda: None, staging=lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(registry, "devices", {"x": broken})
    assert devices.staging_of("X") is None and devices.staging_of("PYTHON") is None


def test_choosing_imports_no_tinygrad() -> None:
    code = "import sys; from gemma4_core.plugins import registry; list(registry.devices)"
    code += "; print('tinygrad' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# ------------------------------------------------------------------------------------------------ --beam


@pytest.mark.parametrize(("value", "width"), [("0", 0), (3, 3), ("max", 4), (" MAX ", 4), ("12", 12)])
def test_beam_widths(value: str | int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGRAD_GEMMA_MAX_BEAM", raising=False)
    assert devices.parse_beam(value) == width


def test_beam_max_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGRAD_GEMMA_MAX_BEAM", "2")
    assert devices.parse_beam("max") == 2
    assert devices.parse_beam("3") == 3
    monkeypatch.setenv("TINYGRAD_GEMMA_MAX_BEAM", "wide")
    with pytest.raises(InputError, match="TINYGRAD_GEMMA_MAX_BEAM='wide'"):
        devices.parse_beam("max")


@pytest.mark.parametrize("value", ["-1", "1.5", "maximum", "", "٣", "99999"])
def test_bad_beam_is_named(value: str) -> None:
    with pytest.raises(InputError, match=f"--beam '{value}'"):
        devices.parse_beam(value)
