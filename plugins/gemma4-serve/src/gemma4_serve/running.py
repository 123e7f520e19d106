"""From settings to a server that listens: socket, model, engine, event loop, and the way out."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gemma4_core import InputError, LoadedModel, load_pretrained
from gemma4_core.cli import note, on_terminal
from gemma4_core.devices import end_compilers
from gemma4_serve.app import create_app
from gemma4_serve.engine.contract import Asked, EngineClient
from gemma4_serve.engine.local import LocalEngine
from gemma4_serve.logs import log
from gemma4_serve.plugins import Page, engine_client, serve_plugins
from gemma4_serve.settings import Settings

HEADER_BYTES = 64 << 10
"""What h11 holds of a request's head."""
CONNECTIONS = 2048
KEEP_ALIVE_SECONDS = 30
LOADING = ("device", "format", "tokenizer", "ple", "beam", "beam_seconds")
"""Options that are arguments of ``load_pretrained`` under the same name."""


def serve(settings: Settings, values: Mapping[str, Any]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        settings: how.
        values: the command's options, for the model, certificates and pages.

    Raises:
        Gemma4Error: the address cannot be listened on, or the model cannot be loaded.
    """
    listening = listen(settings)
    with listening:
        engine = make_engine(settings, values)
        pages: list[Page] = []
        if values["web"]:
            pages = [page for plugin in serve_plugins() for page in plugin.pages]
        scheme = "https" if values["tls_cert"] is not None else "http"
        address = listening.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        log.write("listening", url=f"{scheme}://{host}:{address[1]}", model=engine.card.name,
                  context=engine.card.context, parallel=engine.stats().slots, key=bool(settings.keys))
        if on_terminal():
            note(f"{engine.card.name} at {scheme}://{host}:{address[1]}/v1 (Ctrl-C ends it)")
        run(create_app(engine, settings, pages), listening, values)
        end_compilers()
        log.write("ended")


def listen(settings: Settings) -> socket.socket:
    """A socket that listens. Raises InputError naming the address."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=CONNECTIONS)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {settings.host} --port {settings.port}: {reason}; choose another") from error


def make_engine(settings: Settings, values: Mapping[str, Any]) -> EngineClient:
    """The engine client that options name. Raises a Gemma4Error."""
    if values["engine"].lower() != "local":
        return engine_client(values["engine"], settings, [values["model"]])
    adapters: dict[str, str] = dict(values["adapters"])
    if len(adapters) < len(values["adapters"]):
        raise InputError("--adapter: two adapters have one name; give each its own")
    engine = LocalEngine(load(values, list(adapters.values())), settings, adapters)
    warm_up(engine)
    return engine


def load(values: Mapping[str, Any], adapters: list[str]) -> LoadedModel:
    """Load the model, with adapters that are not in force. Raises a Gemma4Error."""
    options = dict(values["plugin_values"].options)
    if adapters:
        options["adapter"] = adapters
    named = {name: values[name] for name in LOADING}
    model = load_pretrained(
        values["model"], modalities=tuple(values["modality"]) or None, max_context=values["context"],
        dtype=None if values["dtype"] == "auto" else values["dtype"], options=options, **named,
    )
    if adapters and model.adapters is not None:
        model.adapters.deactivate()
    return model


def warm_up(engine: LocalEngine) -> None:
    """Compile and capture what the first requests would wait for."""
    begin = engine.model.config.bos_token_id

    async def ask() -> None:
        stream = await engine.submit(Asked("tokens", [begin or 0] * 8, {"max_new_tokens": 3, "ignore_eos": True}))
        async for _ in stream.batches():
            pass

    asyncio.run(ask())


def run(app: ASGIApp, listening: socket.socket, values: Mapping[str, Any]) -> None:
    """Run the application on a socket until a signal comes and running requests have finished."""
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES, limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=round(values["drain"]),
        ssl_certfile=values["tls_cert"], ssl_keyfile=values["tls_key"],
    )
    # uvicorn raises the signals that it caught again once it has ended: by then all is done
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
