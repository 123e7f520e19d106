"""The rate at which a device reads its memory, measured in a process of its own.

    python benchmarks/bandwidth.py --device cpu

Prints one JSON object. The read is the device plugin's (C on the CPU, CUDA C++ on NVIDIA GPUs), else a sum in tinygrad.
A figure for a CPU means nothing without a read rate from the same minute.
"""

from __future__ import annotations

import json

import click
from payload import parse, python, run, start

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.errors import Gemma4Error


def measured(device: str) -> float | None:
    """GB/s of a device, measured in a separate process: it allocates gigabytes. None if it cannot be measured."""
    ended = run(python("bandwidth.py", "--device", device), seconds=120)
    try:
        found = parse(ended.out, "benchmarks/bandwidth.py").get("gbps") if ended.code == 0 else None
    except Gemma4Error:
        return None
    return float(found) if found else None


@click.command("bandwidth", cls=GemmaCommand)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Device plugin.")
def bandwidth_command(device: str) -> None:
    """Print the rate of a plain read of a device's memory as one JSON object; gbps is null if it cannot be measured."""
    from gemma4_core.contracts import DeviceSettings
    from gemma4_core.devices import activate
    from gemma4_plugins.commands.bench.bandwidth import read_bandwidth

    backend, _ = activate(device, DeviceSettings())
    found = read_bandwidth(backend)
    print(json.dumps({"device": backend.name, "gbps": None if found is None else round(found / 1e9, 2)}))


if __name__ == "__main__":
    start(bandwidth_command, __file__)
