"""Comparing an open checkpoint with its config and the towers to be loaded, and what to do if parts of it are missing
or have no plugin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemma4_core.checkpoint.check import check_tensors
from gemma4_core.checkpoint.names import NamedSource
from gemma4_core.config import GemmaConfig, below_wrappers, expected_text_tensors, ignorable
from gemma4_core.contracts import Context, ModalityTower
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown, shown_path

MESSAGE_LIMIT = 480


def check_source(
    context: Context, source: NamedSource, wanted: Sequence[ModalityTower], chosen: bool = False, copies: bool = True
) -> tuple[str, ...]:
    """Compare the files with what the config and the towers need, before any weight is loaded.

    Args:
        context: the checkpoint.
        source: its open weights.
        wanted: the towers to be loaded.
        chosen: whether a user named them: parts outside the text model that no plugin claims are allowed then.
        copies: whether to read tensors that are stored twice and compare them.

    Returns:
        the tensors of parts that no plugin serves; the model runs without them.

    Raises:
        CheckpointError: as ``check_tensors``, with the option that opens the checkpoint if parts of it are missing; or
            two copies of a tensor differ.
    """
    assert context.config is not None
    where = shown_path(context.path or "checkpoint")
    try:
        unserved = compare(context.config, source, wanted, chosen, where)
    except CheckpointError as fault:
        option = opening_option(context.config, source, wanted)
        if option is None:
            raise
        text = str(fault)[: MESSAGE_LIMIT - len(option)]
        raise CheckpointError(f"{text}; {option}", fault.faults) from fault
    if copies:
        source.check_copies(where)
    return unserved


def check_stored(context: Context, source: NamedSource) -> None:
    """``check_source`` for a checkpoint that is rewritten: towers that the files lack altogether are left out again."""
    assert context.config is not None
    there = [spec for spec in source.towers if not spec.tensors(context.config).keys().isdisjoint(source.infos)]
    check_source(context, source, there)


def compare(
    config: GemmaConfig, source: NamedSource, wanted: Sequence[ModalityTower], chosen: bool, where: str
) -> tuple[str, ...]:
    """``check_source`` without suggesting an option and without comparing copies."""
    from gemma4_core.plugins import registry

    expected = {name: shape for spec in wanted for name, shape in spec.tensors(config).items()}
    elsewhere = {name for spec in source.towers if spec not in wanted for name in spec.tensors(config)}
    text = {part_of(name) for name in expected_text_tensors(config)} | {"lm_head"}
    anything = chosen or bool(registry.unavailable())
    prefixes = tuple(prefix for spec in registry.modalities.values() for prefix in spec.prefixes)
    declared = {key.removesuffix("_config") for key in config.media}

    def unserved(name: str) -> bool:
        part = part_of(name)
        # those of a tower that the config does not declare, or whose plugin is not installed
        tower = config.conditional and (
            f"model.{below_wrappers(name)}".startswith(prefixes) or not declared.isdisjoint(part.split("_"))
        )
        return name not in expected and (tower or (anything and part not in text))

    def skip(name: str) -> bool:
        return name in elsewhere or ignorable(config, name) or unserved(name)

    check_tensors(config, source.infos, expected, skip, where)
    return tuple(name for name in source.infos if name not in elsewhere and unserved(name))


def part_of(name: str) -> str:
    """The part of a model that a tensor belongs to: ``layers``, ``norm``, ``vision_tower``, …"""
    return below_wrappers(name).partition(".")[0]


def opening_option(config: GemmaConfig, source: NamedSource, wanted: Sequence[ModalityTower]) -> str | None:
    """The option that opens a checkpoint without the parts that its files lack, and what it leaves out; None if there
    is no such option."""
    whole = [spec for spec in wanted if spec.tensors(config).keys() <= source.infos.keys()]
    names = {spec.name for spec in whole}
    whole = [spec for spec in whole if names.issuperset(spec.requires)]
    for towers in (whole, []):
        try:
            compare(config, source, towers, True, "")
        except CheckpointError:
            continue
        left = [spec.name for spec in wanted if spec not in towers]
        without = f" without {', '.join(left)}" if left else ""
        return f"--modality {','.join(['text', *(spec.name for spec in towers)])} opens it{without}"
    return None


def unserved_warning(unserved: Iterable[str], context: Context) -> str:
    """A line saying which parts a model runs without, and which plugin is the reason."""
    from gemma4_core.plugins import registry

    names = list(unserved)
    parts = list(dict.fromkeys(part_of(name) for name in names))
    told = {f"plugin {name} is {why}": set(name.lower().split("_")) for name, why in registry.unavailable().items()}
    words = {word for part in parts for word in part.lower().split("_")}
    reasons = [text for text, own in told.items() if own & words] or list(told)
    why = "; ".join(reasons[:3]) if reasons else "no plugin for them is installed"
    return (f"{shown_path(context.folder or 'checkpoint')}: {len(names)} tensors of {', '.join(parts[:4])}, such as "
            f"{shown(names[0])}, are left out: {why}")
