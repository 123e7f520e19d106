"""What the project's C compiler makes of a source for another processor than this one."""

from __future__ import annotations

import subprocess

from gemma4_plugins.devices.native import compiler

OURS = ("-march", "-mcpu", "--target", "-ffixed")


def assembly(source: str, target: str, *flags: str) -> str:
    """Assembly for an architecture as clang names it, with tinygrad's flags except those for this machine."""
    usual = ["-S" if flag == "-c" else flag for flag in compiler.clang_arguments() if not flag.startswith(OURS)]
    command = [str(compiler.configure().path), f"--target={target}-none-unknown-elf", *flags, *usual]
    return subprocess.run(command, input=source.encode(), capture_output=True, check=True, timeout=120).stdout.decode()
