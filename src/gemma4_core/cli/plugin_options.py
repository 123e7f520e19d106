"""Options that plugins add to commands: media, settings of towers, model transforms, callbacks of training.

They come from the registry, which is asked only when such a command is parsed or its help is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli import completion
from gemma4_core.cli.base import GemmaCommand, ManyOption, read_environment
from gemma4_core.cli.options import Number, Whole
from gemma4_core.errors import PluginError

if TYPE_CHECKING:
    from gemma4_core.contracts import ModalityTower, Option

KEY = "gemma4_core.plugin_options"


@dataclass(frozen=True)
class PluginParam:
    """One option on the command line, with the plugins that it belongs to."""

    param: click.Option
    owners: tuple[str, ...]
    """Plugins, as ``modality 'dots' of gemma4-example``; none where no plugin serves it, several in a conflict."""
    keyword: str
    default: Any = None
    media_keyword: str | None = None
    """The argument of ``stream_generate`` for an option that takes media."""
    training: bool = False
    """See ``Option``."""


@dataclass
class PluginValues:
    """The values that a user gave for options of plugins."""

    options: dict[str, Any] = field(default_factory=dict)
    """Every option's value by keyword, defaults included; media options left out."""
    media: dict[str, list[str]] = field(default_factory=dict)
    """Media by the argument that they are passed as, such as ``images``."""
    flags: dict[str, str] = field(default_factory=dict)
    """The flag of each such argument."""


def collect(own: set[str], expected: Mapping[str, str]) -> dict[str, PluginParam]:
    """Options of all plugins by parameter name.

    Args:
        own: flags of the command itself. A plugin's option of the same flag is left out.
        expected: media options, with their argument of ``stream_generate``, that are listed even without a plugin.
    """
    from gemma4_core.plugins import registry

    found: dict[str, list[tuple[str, Option, ModalityTower | None]]] = {}
    for entry in registry.modalities.entries():
        who = f"modality '{entry.name}' of {entry.origin.distribution or 'this process'}"
        tower = entry.description
        found.setdefault(tower.media_option.flag, []).append((who, tower.media_option, tower))
        for option in tower.options:
            found.setdefault(option.flag, []).append((who, option, None))
    for transform in registry.transforms.entries():
        who = f"transform '{transform.name}' of {transform.origin.distribution or 'this process'}"
        for option in transform.description.options:
            found.setdefault(option.flag, []).append((who, option, None))
    for callback in registry.callbacks.entries():
        who = f"callback '{callback.name}' of {callback.origin.distribution or 'this process'}"
        for option in callback.description.options:
            found.setdefault(option.flag, []).append((who, replace(option, training=True), None))
    params = [unserved(flag, keyword) for flag, keyword in expected.items() if flag not in found]
    params += [_joined(claims) for flag, claims in found.items() if flag not in own]
    order = list(expected)
    params.sort(key=lambda p: (p.media_keyword is None, *_rank(p.param.opts[0], order)))
    return {str(p.param.name): p for p in params}


def _rank(flag: str, order: list[str]) -> tuple[int, str]:
    return (order.index(flag) if flag in order else len(order), flag)


def unserved(flag: str, keyword: str) -> PluginParam:
    """The option of a medium that no plugin serves: it is listed, and refused when used."""
    help = f"No plugin for {keyword} is loaded (see gemma4 plugins)."
    param = ManyOption([flag, f"plugin_{flag[2:]}"], metavar="PATH", help=help)
    return PluginParam(param, (), flag[2:], media_keyword=keyword)


def _joined(claims: list[tuple[str, Option, ModalityTower | None]]) -> PluginParam:
    _, option, tower = claims[0]
    owners = tuple(who for who, _, _ in claims)
    param = make_param(option, tower is not None)
    if len(claims) > 1:
        param.help = f"Claimed by {' and by '.join(owners)}."
    return PluginParam(param, owners, option.keyword, option.default, tower.media_keyword if tower else None,
                       all(option.training for _, option, _ in claims))


def make_param(option: Option, media: bool = False) -> click.Option:
    """A plugin's ``Option`` as a click option; a prefix keeps its name from shadowing ours.

    The default is set in ``gather``, so that click does not convert or refuse it.
    """
    declaration = [option.flag, f"plugin_{option.keyword}"]
    if option.type is bool:
        return click.Option(declaration, is_flag=True, default=False, help=option.help)
    kind: Any = {int: Whole(-(1 << 62), 1 << 62), float: Number(-1e300, 1e300)}.get(option.type, option.type)
    if option.choices:
        kind = click.Choice(option.choices, case_sensitive=False)
    shown = option.metavar or ("PATH" if media else None)
    help = option.help if option.default is None else f"{option.help}  [default: {option.default}]"
    settings: dict[str, Any] = {"type": kind, "metavar": shown, "help": help}
    if shown in ("PATH", "FILE", "FOLDER"):
        settings["shell_complete"] = completion.files
    return ManyOption(declaration, **settings) if option.multiple or media else click.Option(declaration, **settings)


class PluginOptionsCommand(GemmaCommand):
    """A command that takes the options of plugins; its callback gets them as ``plugin_values``."""

    trains = False
    """Whether it takes the options that are for training."""
    expected_media: Mapping[str, str] = MappingProxyType({})
    """Media options that it lists even where no plugin serves them, with their argument of ``stream_generate``."""

    def plugin_params(self, ctx: click.Context) -> dict[str, PluginParam]:
        """The options of plugins by parameter name, asked for once per run."""
        if KEY not in ctx.meta:
            own = {flag for param in self.params for flag in param.opts + param.secondary_opts}
            known = collect(own, self.expected_media).items()
            read_environment([param.param for _, param in known])
            ctx.meta[KEY] = {name: param for name, param in known if self.trains or not param.training}
        return ctx.meta[KEY]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        return [*own[:-1], *(p.param for p in self.plugin_params(ctx).values()), *own[-1:]]  # --help stays last

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Our own options, then media, then what else plugins bring."""
        plugin = self.plugin_params(ctx)
        own = [param for param in self.get_params(ctx) if param.name not in plugin]
        media = [known.param for known in plugin.values() if known.media_keyword is not None]
        others = [known.param for known in plugin.values() if known.media_keyword is None]
        for title, params in (("Options", own), ("Media", media), ("Options of plugins", others)):
            records = [record for param in params if (record := param.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        ctx.params["plugin_values"] = self.gather(ctx)
        return super().invoke(ctx)

    def gather(self, ctx: click.Context) -> PluginValues:
        """Values of the plugins' options. Raises PluginError for one that no plugin serves, or that several claim."""
        values = PluginValues()
        for name, known in self.plugin_params(ctx).items():
            value = ctx.params.pop(name, None)
            given = ctx.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)
            if given:
                refuse_unowned(known, value)
            if known.media_keyword is not None:
                values.flags[known.media_keyword] = known.param.opts[0]
                if value:
                    values.media[known.media_keyword] = list(value)
            elif known.owners:
                values.options[known.keyword] = value if given or known.default is None else known.default
        if ctx.params.pop("allow_urls", False):
            values.options["allow_urls"] = True
        return values


def refuse_unowned(known: PluginParam, value: Any) -> None:
    """Raise PluginError for an option that no plugin serves, or that several claim."""
    flag = known.param.opts[0]
    first = value[0] if isinstance(value, list | tuple) and value else value
    if not known.owners:
        raise PluginError(f"{flag} {first}: no plugin for {known.media_keyword} is loaded; gemma4 plugins says why")
    if len(known.owners) > 1:
        raise PluginError(f"{flag} {first}: claimed by {' and by '.join(known.owners)}; uninstall or block one of them")
