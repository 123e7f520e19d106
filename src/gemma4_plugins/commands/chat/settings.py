"""Sampling options that ``/set`` changes during a chat."""

from __future__ import annotations

from typing import Any

import click

from gemma4_core.cli.options import MAX_NEW_TOKENS, clipped, sampling_options
from gemma4_core.engine.drafting import LONGEST
from gemma4_core.errors import InputError
from gemma4_core.plugins import registry
from gemma4_core.plugins.origin import nearest


@click.command()
@sampling_options
def _options(**values: Any) -> None:
    """Holds the sampling options; it never runs."""


SAMPLING_OPTIONS = {str(param.name): param for param in _options.params}
"""The sampling options of ``generate`` by parameter name."""
UNSET = {
    "temperature": 0.0, "max_new_tokens": MAX_NEW_TOKENS, "stop": (), "ignore_eos": False, "num_draft_tokens": LONGEST,
}
"""Values of options that cannot be unset: what ``off`` means for them."""
OFF = ("off", "none", "default")


def option_name(name: str) -> str:
    """The parameter of an option as users spell it: ``top-k``, ``--top_k``, ``temp``. Raises InputError."""
    flag = "--" + name.lower().lstrip("-").replace("_", "-")
    for parameter, option in SAMPLING_OPTIONS.items():
        if flag in option.opts or name == option.opts[-1].lstrip("-"):
            return parameter
    raise InputError(f"/set {name[:60]}: no such option{nearest(name, SAMPLING_OPTIONS) or ';'} /set shows them all")


def setting(name: str, value: str) -> dict[str, Any]:
    """Parameter and value of ``/set NAME VALUE``, checked as on the command line; ``off`` unsets. Raises InputError."""
    parameter = option_name(name)
    option = SAMPLING_OPTIONS[parameter]
    if not value:
        raise InputError(f"/set {name}: give a value, or off")
    if value.lower() in OFF:
        return {parameter: UNSET.get(parameter)}
    try:
        found = option.type.convert(value, option, None)
    except click.BadParameter as error:
        raise InputError(f"/set {name}: {error.message} (given {clipped(value)})") from error
    if parameter == "draft":
        registry.drafters[found]  # raises PluginError
    return {parameter: dict([found]) if parameter == "logit_bias" else (found,) if option.multiple else found}


def shown_setting(value: Any) -> str:
    """A value as ``/set`` shows it."""
    if value is None or value is False or value == ():
        return "off"
    if isinstance(value, dict):
        return ", ".join(f"{token}={added:g}" for token, added in value.items())
    return ", ".join(repr(text) for text in value) if isinstance(value, tuple) else str(value)
