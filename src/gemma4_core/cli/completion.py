"""Shell completion of models, plugins and files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``demo``, the models of the Hugging Face cache by alias or hub name, and folders."""
    from click.shell_completion import CompletionItem

    from gemma4_core.checkpoint.hub import DEMO
    from gemma4_core.checkpoint.hub_cache import cached_models

    names = [DEMO, *(model.alias or model.name for model in cached_models())]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete.lower())]
    return found or [CompletionItem(incomplete, type="dir")]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """File names, which the shell completes itself."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def plugins(view: str, *more: str) -> Complete:
    """Names of the plugins of one kind: ``view`` is the registry's attribute, such as ``devices``."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from gemma4_core.plugins import registry

        known: Any = getattr(registry, view)
        given, comma, last = incomplete.rpartition(",")
        found = [(name, known[name].summary) for name in known] + [(name, None) for name in more]
        return [CompletionItem(given + comma + name, help=text) for name, text in found
                if name.casefold().startswith(last.casefold())]

    return complete
