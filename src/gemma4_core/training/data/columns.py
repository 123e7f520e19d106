"""Which columns of the data stand for which keys: ``--column messages=chat``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.plugins.origin import nearest
from gemma4_core.processing.messages import kind
from gemma4_core.training.data.forms import LINE_KEYS

if TYPE_CHECKING:
    from gemma4_core.contracts import ModalityTower

DATASET_MEDIA = ("images", "audio", "videos")
"""Keys that datasets have media under, whether a plugin reads them or not."""
GROUPS = (
    ("messages",), ("conversations",), ("prompt", "completion"), ("text",),
    ("instruction", "input", "context", "output", "response", "history"),
)
"""Keys that make a kind of line together: choosing one by a column leaves other kinds out."""
ABSENT = object()
NAMED = 20
"""Columns that a message names."""


def media_names(spec: ModalityTower) -> tuple[str, ...]:
    """The keys under which a line may have a modality's media."""
    return (spec.media_keyword, kind(spec), f"{kind(spec)}s")


def known_keys() -> list[str]:
    """Every key of a line that means something, those of media included."""
    from gemma4_core.plugins import registry

    media = [name for spec in registry.modalities.values() for name in media_names(spec)]
    return list(dict.fromkeys([*LINE_KEYS, *media, *DATASET_MEDIA]))


class Columns:
    """A mapping from our keys to the columns of a dataset. A column inside an object is named with dots."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        """Raises InputError for keys that no line has, and for what is not text."""
        self.names = dict(names or {})
        self.missing = dict(self.names)
        """Columns that have not been met yet, by our keys."""
        self.met: dict[str, None] = {}
        """Columns that were met, as far as messages name them."""
        known = known_keys() if self.names else []
        for ours, theirs in self.names.items():
            if not isinstance(ours, str) or not isinstance(theirs, str) or not theirs:
                raise InputError(f"column {shown(ours)}={shown(theirs)}: give the name of a column for a key, such as "
                                 f"messages=chat")
            if ours not in known:
                turned = f", did you mean {theirs}={ours}?" if theirs in known else nearest(ours, known)
                raise InputError(f"column {shown(ours)[1:-1]}={shown(theirs)[1:-1]}: examples have no key "
                                 f"{shown(ours)}{turned or '; keys are messages, prompt, completion, text and others'}")
        chosen = [group for group in GROUPS if any(key in group for key in self.names)]
        self.left_out = {key for group in GROUPS if chosen and group not in chosen for key in group} - {*self.names}

    def applied(self, row: Any) -> Any:
        """A row under our keys. A column named like one of our keys gives way to the one that is mapped to it, and
        columns of other kinds of examples are left out."""
        if not self.names or not isinstance(row, dict):
            return row
        if len(self.met) < 1000:
            self.met.update(dict.fromkeys(row))
        taken, used = {}, set()
        for ours, theirs in self.names.items():
            value = looked_up(row, theirs)
            if value is not ABSENT:
                taken[ours] = value
                used.add(theirs if theirs in row else theirs.partition(".")[0])
                self.missing.pop(ours, None)
        if not taken:
            return row
        gone = used | {*taken} | (self.left_out if chooses(taken) else set())
        return {key: value for key, value in row.items() if key not in gone} | taken

    def sources(self) -> list[str]:
        """Names of columns to read for it: the columns, and for dotted ones what they stand in."""
        return [name for theirs in self.names.values() for name in (theirs, theirs.partition(".")[0])]

    def check(self, where: str) -> None:
        """Raise InputError for a column that no row had."""
        for ours, theirs in self.missing.items():
            near = nearest(theirs, self.met)
            named = ", ".join(shown(name)[1:-1] for name in list(self.met)[:NAMED])
            raise InputError(f"{where}: there is no column {shown(theirs)} (--column {shown(ours)[1:-1]}="
                             f"{shown(theirs)[1:-1]}){near}{'' if near else ';'} it has {named or 'none'}"[:450])


def chooses(keys: Iterable[str]) -> bool:
    """Whether one of these keys tells the kind of a line."""
    return any(key in group for key in keys for group in GROUPS)


def looked_up(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of one inside of objects by its dotted name; ``ABSENT`` where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value
