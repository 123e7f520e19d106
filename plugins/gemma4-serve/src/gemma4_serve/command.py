"""Serve a model to OpenAI's and Anthropic's clients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli import (
    FilePath,
    Number,
    PluginOptionsCommand,
    Whole,
    device_options,
    loading_options,
    model_option,
)

if TYPE_CHECKING:
    from gemma4_serve.settings import Settings

SIZE = re.compile(r"([0-9]{1,12})\s*([kKmMgG]?)(?:i?[bB])?")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class ServeCommand(PluginOptionsCommand):
    """A command with the options of plugins but for media, which requests bring."""

    def plugin_params(self, ctx: click.Context) -> dict[str, Any]:
        """See ``PluginOptionsCommand``."""
        return {name: known for name, known in super().plugin_params(ctx).items() if known.media_keyword is None}


class Size(click.ParamType):
    """A number of bytes, such as ``32M``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes."""
        if isinstance(value, int):
            return value
        found = SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"'{str(value)[:80]}' is not a size such as 512k, 32M or 1G.", param, ctx)
        return int(found[1]) * UNITS[found[2].lower()]


class Parallel(click.ParamType):
    """A number of requests, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or ``auto``."""
        return "auto" if str(value).strip().lower() == "auto" else Whole(1, 256).convert(value, param, ctx)


class Named(click.ParamType):
    """``NAME=FOLDER``, as a pair."""

    name = "NAME=FOLDER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The pair."""
        if isinstance(value, tuple):
            return value
        name, equals, folder = str(value).partition("=")
        if not equals or not folder or re.fullmatch(r"[\w.-]{1,64}", name) is None:
            self.fail(f"'{str(value)[:120]}' is not a name with a folder, such as poet=adapters/poet.", param, ctx)
        return name, folder


@click.command("serve", cls=ServeCommand)
@model_option()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Address to listen on. Others than this machine's own need a key.")
@click.option("--port", type=Whole(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key-file", type=FilePath(), default=None, metavar="FILE",
              help="Keys, one on each line; without it the one in GEMMA4_API_KEY, if any.")
@click.option("--insecure", is_flag=True, allow_from_autoenv=False, help="Listen elsewhere without a key.")
@click.option("--alias", default=None, metavar="NAME", help="The model's name for clients. Default: its folder's.")
@click.option("--adapter", "adapters", type=Named(), multiple=True, metavar="NAME=FOLDER",
              help="Serve an adapter as the model ALIAS:NAME; may be given more than once.")
@click.option("--parallel", type=Parallel(), default="auto", show_default=True, metavar="N|auto",
              help="Requests that run at once; auto is as many as fit into free memory.")
@click.option("--queue", type=Whole(0, 1 << 20), default=256, show_default=True, metavar="N",
              help="Requests that may wait besides those that run; more are refused with 503.")
@click.option("--prefix-cache", type=Size(), default=None, metavar="SIZE",
              help="Device memory for beginnings that prompts share. Default: a quarter of that of the requests.")
@click.option("--draft", default=None, metavar="NAME", help="Drafter plugin for all requests, such as lookup.")
@click.option("--thinking/--no-thinking", default=False, help="Think first where a request does not say.")
@click.option("--timeout", type=Number(1), default=600.0, show_default=True, metavar="SECONDS",
              help="Longest request, waiting included.")
@click.option("--drain", type=Number(0), default=60.0, show_default=True, metavar="SECONDS",
              help="How long running requests may go on after SIGTERM.")
@click.option("--max-body", type=Size(), default="32M", show_default=True, metavar="SIZE", help="Largest body.")
@click.option("--allow-media-host", "media_hosts", multiple=True, metavar="HOST",
              help="Fetch media from URLs of this host; may be given more than once.")
@click.option("--allow-host", "allowed_hosts", multiple=True, metavar="NAME",
              help="Answer requests for this Host besides this machine's own names; may be given more than once.")
@click.option("--cors-origins", "origins", multiple=True, metavar="ORIGIN",
              help="Let web pages of this origin ask: an origin, localhost, or * for all.")
@click.option("--public-metrics", is_flag=True, help="Ask for no key on /metrics.")
@click.option("--tls-cert", type=FilePath(), default=None, metavar="FILE", help="Certificate chain (PEM), for HTTPS.")
@click.option("--tls-key", type=FilePath(), default=None, metavar="FILE", help="Its private key (PEM).")
@click.option("--web/--no-web", default=True, help="Serve the pages of installed packages.")
@click.option("--engine", default="local", show_default=True, metavar="NAME",
              help="What answers: the model in this process, or an engine client of a package.")
@click.option("--quiet", "-q", is_flag=True, help="No log on stderr.")
@device_options
@loading_options
def serve_command(quiet: bool, **values: Any) -> None:
    """Serve a model over HTTP: OpenAI's chat completions, completions, responses, transcriptions and embeddings, and
    Anthropic's messages.

    \b
    gemma4 serve -m e2b-it
    gemma4 serve -m e2b-it --port 8080 --parallel 8 --context 32768
    gemma4 serve -m e2b-it --host 0.0.0.0 --api-key-file keys.txt

    It listens on this machine alone unless told otherwise. Ctrl-C and SIGTERM let running requests finish.
    """
    from gemma4_serve.logs import log
    from gemma4_serve.running import serve

    log.on = not quiet
    serve(settings_of(values), values)


def settings_of(values: dict[str, Any]) -> Settings:
    """The settings that options name. Raises UsageError and InputError."""
    from gemma4_serve.security.keys import VARIABLE, read_keys
    from gemma4_serve.settings import Limits, Settings

    if (values["tls_cert"] is None) != (values["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key belong together.")
    path: Path | None = values["api_key_file"]
    settings = Settings(
        host=values["host"], port=values["port"], keys=read_keys(path), alias=values["alias"],
        allowed_hosts=tuple(values["allowed_hosts"]), origins=split(values["origins"]),
        media_hosts=frozenset(host.lower() for host in values["media_hosts"]),
        public_metrics=values["public_metrics"], thinking=values["thinking"], parallel=values["parallel"],
        context=values["context"], prefix_bytes=values["prefix_cache"], draft=values["draft"],
        limits=Limits(body_bytes=values["max_body"], queue=values["queue"], seconds=values["timeout"]),
    )
    if not settings.on_loopback and not settings.keys and not values["insecure"]:
        raise click.UsageError(f"--host {settings.host} lets other machines ask: give --api-key-file or {VARIABLE}, or "
                               "--insecure to do without a key.")
    return settings


def split(values: tuple[str, ...]) -> tuple[str, ...]:
    """Values that may also be given as one, separated by commas."""
    return tuple(piece.strip() for value in values for piece in value.split(",") if piece.strip())
