"""Check devices, compiler, plugins, and a checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.options import model_option
from gemma4_core.cli.output import on_terminal, write
from gemma4_core.cli.tables import fitted
from gemma4_core.formatting import human_bytes

if TYPE_CHECKING:
    from gemma4_plugins.commands.doctor.machine import Report
    from gemma4_plugins.commands.doctor.verification import Check

MARKS = {"ok": "ok    ", "note": "note  ", "failed": "FAILED"}


@click.command("doctor", cls=GemmaCommand)
@model_option(required=False, help="Also verify this checkpoint: a folder, hub name or alias.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Device that runs the checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor_command(model: str | None, device: str, as_json: bool) -> None:
    """Show versions, devices, compiler, memory and plugins, with reasons for what cannot be used.

    \b
    gemma4 doctor
    gemma4 doctor --model-dir google/gemma-4-E2B-it

    A checkpoint is compared with what is published of its size (config, tensors, values, tokenizer, chat template),
    and runs a short prompt. The exit code is 1 if one of these checks fails.
    """
    from gemma4_plugins.commands.doctor.machine import examine, relevant_environment

    environment = relevant_environment()
    checks = [] if model is None else _verified(model, device)
    report = examine(environment)
    if as_json:
        found: dict[str, Any] = report.as_dict()
        if model is not None:
            found["model"] = {"name": model, "checks": [check.as_dict() for check in checks]}
        write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        write("\n".join(fitted([*report_lines(report), *check_lines(model, checks)])) + "\n")
    failed = [check for check in checks if check.status == "failed"]
    if failed:
        what = "; ".join(f"{check.name}: {check.text}" for check in failed[:2])
        raise click.ClickException(f"{model}: {len(failed)} of {len(checks)} checks failed: {what}")


def _verified(model: str, device: str) -> list[Check]:
    """All checks of a checkpoint; on a terminal each is shown when it is done."""
    from gemma4_plugins.commands.doctor.verification import verify

    checks = []
    for check in verify(model, device):
        checks.append(check)
        if on_terminal():
            click.echo(f"{MARKS[check.status]} {check.name}", err=True)
    return checks


def report_lines(report: Report) -> list[str]:
    """The report as lines of text."""
    own, *others = report.versions.items()
    lines = [
        f"{own[0]} {own[1]}, Python {report.python}",
        f"with {', '.join(f'{name} {version}' for name, version in others)}",
        f"on {report.system}, {report.cores} cores, {_memory(report.total_bytes, report.free_bytes)}",
        "",
        f"devices (--device auto takes {report.auto or 'none'})",
    ]
    width = max((len(device.name) for device in report.devices), default=0)
    for device in report.devices:
        free = f", {human_bytes(device.free_bytes)} free" if device.free_bytes is not None else ""
        lines.append(f"  {device.name:<{width}}  {'usable' + free if device.usable else 'no: ' + str(device.reason)}")
        lines += [f"  {'':<{width}}    {name}: {text}" for name, text in device.details.items()]
    lines += ["", f"plugins: {', '.join(report.plugins) or 'none'}"]
    lines += [f"blocked: {', '.join(report.blocked)}"] if report.blocked else []
    lines += ["", *(f"{name}: {path}" for name, path in report.folders.items())]
    lines += [f"{name}={value}" for name, value in report.environment.items()]
    lines += ["", *(f"! {problem}" for problem in report.problems)] if report.problems else []
    return lines


def check_lines(model: str | None, checks: list[Check]) -> list[str]:
    """The checks as lines of text."""
    if model is None:
        return []
    return ["", f"checkpoint {model}", *(f"  {MARKS[c.status]} {c.name}: {c.text}" for c in checks)]


def _memory(total: int | None, free: int | None) -> str:
    told = [f"{human_bytes(total)} memory"] if total is not None else []
    told += [f"{human_bytes(free)} free"] if free is not None else []
    return ", ".join(told) or "memory unknown"
