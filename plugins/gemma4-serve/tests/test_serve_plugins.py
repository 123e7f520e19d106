"""The entry-point group ``gemma4.serve``: pages and engine clients of other packages."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from gemma4_serve import Page, ServePlugin, Settings
from gemma4_serve.plugins import engine_client, serve_plugins
from gemma4_serve.settings import digests
from serve_tools import CONTEXT, Live, demo_model
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gemma4_core import PluginError


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("a page")


PAGES = (Page("/", lambda: [Route("/", page), Route("/app.js", page), Route("/v1/models", page)]),)


def test_a_page_needs_no_key_and_opens_no_route() -> None:
    settings = Settings(parallel=1, context=CONTEXT, keys=digests(["a-long-key"]))
    with Live(demo_model(), settings, pages=PAGES) as live:
        for path in ("/", "/app.js"):
            assert live.client.get(path).text == "a page" and live.client.head(path).status_code == 200
            assert live.client.post(path).status_code == 401
        for path in ("/v1/models", "/metrics", "/nothing", "/v1/models/demo"):
            assert live.client.get(path).status_code == 401, path
        answer = live.client.get("/v1/models", headers={"x-api-key": "a-long-key"})
        assert answer.json()["data"][0]["id"] == "demo"


def test_packages_are_found_by_their_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def fleet(settings: Settings, arguments: Any) -> Any:
        return ("a fleet", settings.port, list(arguments))

    module: Any = types.ModuleType("their_serving")
    module.plugin = ServePlugin("pages", "pages", pages=PAGES)
    module.fleet = ServePlugin("Fleet", "many machines", engine=fleet)
    monkeypatch.setitem(sys.modules, "their_serving", module)
    values = {"pages": "their_serving", "fleet": "their_serving:fleet", "broken": "no_such_module", "odd": "sys:path"}
    found = [EntryPoint(name, value, "gemma4.serve") for name, value in values.items()]
    monkeypatch.setattr("gemma4_serve.plugins.entry_points", lambda group: found if group == "gemma4.serve" else [])
    assert [plugin.name for plugin in serve_plugins()] == ["pages", "Fleet"]
    assert engine_client("fleet", Settings(port=9), ["demo"]) == ("a fleet", 9, ["demo"])
    with pytest.raises(PluginError, match=r"--engine other: .* local, fleet"):
        engine_client("other", Settings(), [])
    monkeypatch.setenv("GEMMA4_DISABLE_PLUGINS", "Pages,fleet")
    assert serve_plugins() == []
