"""Opening a tinygrad device to see whether it works, without letting a driver hang or kill this process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gemma4_core.devices.process import process

OPEN_SECONDS = 60.0
"""A driver that does not answer by then is taken for hanging."""

CHILD = """
import sys
from tinygrad.helpers import DEV
from tinygrad import Device
try: Device[sys.argv[1]].renderer
except BaseException as error:
    while isinstance(error, BaseExceptionGroup): error = error.exceptions[0]
    print(" ".join(f"{type(error).__name__}: {error}".split())[:300]); sys.exit(3)
"""


def open_device(target: str, interface: str = "", isolated: bool = False) -> str | None:
    """Open a tinygrad device and make its renderer; None where both work, else why not, on one line.

    ``interface`` is the driver interface to take where ``DEV`` names none, such as ``KFD``: tinygrad would go on to
    others, some of which take a PCI device away from its kernel driver. ``isolated`` tries it in another process
    first, for drivers that may crash. Neither is given more than a minute.
    """
    if target in process.opened:
        return None
    spec = _device_spec(target, interface)
    if isolated and (reason := _open_in_child(target, spec)) is not None:
        return reason
    reason = _within(OPEN_SECONDS, lambda: _open(target, spec))
    if reason is None:
        process.opened.add(target)
    return reason


def _device_spec(target: str, interface: str) -> list[Any]:
    """``DEV`` with the interface filled in for this device."""
    from tinygrad.helpers import DEV

    own = replace(DEV.target(target), device=target).replacedefault(interface=interface)
    return [own, *(part for part in DEV.value if part.device not in ("", target))]


def _open(target: str, spec: list[Any]) -> str | None:
    from tinygrad import Device
    from tinygrad.helpers import Context

    try:
        with Context(DEV=spec, CACHELEVEL=0):  # the cache's connection would belong to this thread
            _ = Device[target].renderer
    except (Exception, SystemExit) as error:
        return reason_of(error)
    return None


def _open_in_child(target: str, spec: list[Any]) -> str | None:
    import os

    environment = {**os.environ, "DEV": ";".join(map(repr, spec)), "CACHELEVEL": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, target], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=OPEN_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its driver did not answer within {OPEN_SECONDS:.0f} s"
    except OSError:
        return None  # no second Python to be had: this process has to try it
    if done.returncode < 0:
        return f"its driver killed the process that opened it (signal {-done.returncode})"
    if done.returncode:
        return (done.stdout.strip() or f"opening it ended with exit code {done.returncode}").splitlines()[-1]
    return None


def _within(seconds: float, function: Callable[[], str | None]) -> str | None:
    """What the function returns, or that it did not return in time. It then goes on in a thread of its own."""
    results: list[str | None] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f"its driver did not answer within {seconds:.0f} s"
    return results[0] if results else "opening it failed"


def reason_of(error: BaseException) -> str:
    """An exception on one line; of a group the first one, which is the interface that tinygrad prefers."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())[:240]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
