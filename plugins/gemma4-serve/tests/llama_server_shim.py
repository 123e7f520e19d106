#!/usr/bin/env python3
"""``gemma4 serve`` under the flags of llama.cpp's ``llama-server``, for the tests of that server.

    cd llama.cpp/tools/server/tests
    LLAMA_SERVER_BIN_PATH=…/plugins/gemma4-serve/tests/llama_server_shim.py pytest unit/test_chat_completion.py

The model is the packaged demo, whatever the tests name, or ``GEMMA4_SHIM_MODEL``. Flags that have no counterpart are
left out. llama-server answers pages of every origin, and its slots share one context; both are imitated here.
"""

from __future__ import annotations

import argparse
import os
import sys

DEFAULT_CONTEXT = 512


def arguments(given: list[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments of ``gemma4 serve`` for those of ``llama-server``, and what goes into the environment."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="8080")
    parser.add_argument("--alias")
    parser.add_argument("--api-key")
    parser.add_argument("--ctx-size", type=int, default=DEFAULT_CONTEXT)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--cors-origins", default="*")
    known, _ = parser.parse_known_args(given)
    found = ["serve", "-m", os.environ.get("GEMMA4_SHIM_MODEL", "demo"), "--host", known.host, "--port", known.port,
             "--parallel", str(known.parallel), "--context", str(known.ctx_size // known.parallel),
             "--cors-origins", known.cors_origins, "--device", "cpu"]  # fmt: skip
    found += ["--alias", known.alias] if known.alias else []
    return found, {"GEMMA4_API_KEY": known.api_key} if known.api_key else {}


if __name__ == "__main__":
    options, environment = arguments(sys.argv[1:])
    os.environ.update(environment)
    command = [sys.executable, "-m", "gemma4_core", *options]
    if os.environ.get("GEMMA4_SHIM_PYTHON"):
        command[0] = os.environ["GEMMA4_SHIM_PYTHON"]
    os.execv(command[0], command)
