"""Which modalities are loaded, and in which order their towers are built."""

from __future__ import annotations

from collections.abc import Sequence

from gemma4_core.contracts import Context, ModalityTower
from gemma4_core.errors import InputError, PluginError
from gemma4_core.formatting import shown
from gemma4_core.plugins import registry

TEXT = "text"
"""The modality that every model has."""


def select_modalities(
    known: Sequence[ModalityTower], context: Context, modalities: Sequence[str] | str | None
) -> list[ModalityTower]:
    """The towers to load: by name, or all of which those that they need are there too.

    Raises PluginError for a name that no plugin has or that this config does not declare.
    """
    by_name = {spec.name.lower(): spec for spec in known}
    if modalities is None:
        return [spec for spec in known if all(need.lower() in by_name for need in spec.requires)]
    names = modalities.split(",") if isinstance(modalities, str) else modalities
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"modalities {shown(modalities)}: must be names of modalities, such as ('text', 'vision')")
    lowered = [name.strip().lower() for name in names if name.strip()]
    for name in lowered:
        if name == TEXT or name in by_name:
            continue
        if name in registry.modalities:
            raise PluginError(
                f"--modality {name}: the config in {context.path} declares no {name}; "
                f"it has {', '.join([TEXT, *by_name])}"
            )
        registry.select("modality", context, name)  # raises, naming what there is
    wanted = [by_name[name] for name in dict.fromkeys(lowered) if name in by_name]
    missing = [
        need for spec in wanted for need in spec.requires if need.lower() not in lowered and need.lower() in by_name
    ]
    return wanted + [by_name[name.lower()] for name in dict.fromkeys(missing)]


def order_towers(specs: Sequence[ModalityTower]) -> list[ModalityTower]:
    """Towers such that each comes after those it requires. Raises PluginError where one is absent."""
    ordered: list[ModalityTower] = []
    waiting = list(specs)
    while waiting:
        built = {spec.name for spec in ordered}
        ready = next((spec for spec in waiting if set(spec.requires) <= built), None)
        if ready is None:
            spec = waiting[0]
            lacking = sorted(set(spec.requires) - built)
            why = [f"; plugin {name} is {text}" for name, text in registry.unavailable().items() if name in lacking]
            raise PluginError(f"modality {spec.name} needs {', '.join(lacking)}, which is not loaded{''.join(why)}")
        ordered.append(ready)
        waiting.remove(ready)
    return ordered
