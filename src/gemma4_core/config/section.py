"""Checked reading of one JSON object of config.json: every fault names the key and shows the value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemma4_core.errors import ConfigError
from gemma4_core.formatting import is_number, shown

ABSENT = object()


class Section:
    """A JSON object at ``prefix`` of the file ``where``. Methods return the value of a key or its default."""

    def __init__(self, data: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.data, self.where, self.prefix = data, where, prefix

    def fault(self, key: str, reason: str, value: Any = ABSENT) -> ConfigError:
        """The error for a key: file, key, its value, and the reason."""
        value = self.data.get(key, ABSENT) if value is ABSENT else value
        stands = "is missing" if value is ABSENT else f"is {shown(value)}"
        return ConfigError(f"{self.where}: {self.prefix}{key} {stands}; {reason}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where the key is absent or null."""
        value = self.data.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``. null is refused: the reference has no meaning for it."""
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fault(key, f"it must be a whole number from {low} to {high}")
        return value

    def optional_integer(self, key: str, default: int | None, low: int, high: int) -> int | None:
        """As ``integer``, where null is a value of its own."""
        if key in self.data and self.data[key] is None:
            return None
        return default if key not in self.data and default is None else self.integer(key, default or 0, low, high)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A finite number above ``low`` and up to ``high``."""
        value = self.data.get(key, default)
        if not is_number(value) or not low < value <= high:
            raise self.fault(key, f"it must be a number above {low:g} and up to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false; null is the default."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, "it must be true or false")
        return value

    def only(self, key: str, supported: Sequence[Any], default: Any) -> Any:
        """One of the supported values; anything else is refused by name."""
        value = self.get(key, default)
        if value not in supported or isinstance(value, bool) != isinstance(default, bool):
            known = " or ".join(shown(v) for v in supported)
            raise self.fault(key, f"only {known} is supported")
        return value

    def child(self, key: str, default: Mapping[str, Any] | None = None) -> Section | None:
        """A JSON object inside this one; None where absent or null without a default."""
        value = self.data.get(key)
        if value is None:
            return None if default is None else Section(default, self.where, f"{self.prefix}{key}.")
        if not isinstance(value, dict):
            raise self.fault(key, "it must be a JSON object or null")
        return Section(value, self.where, f"{self.prefix}{key}.")

    def token_ids(self, key: str, default: tuple[int, ...] | None, high: int) -> tuple[int, ...] | None:
        """Token ids from one id or a list of ids; the default where absent or null."""
        value = self.get(key)
        if value is None:
            return default
        ids = value if isinstance(value, list) else [value]
        if len(ids) > 4096 or any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < high for i in ids):
            raise self.fault(key, f"it must be a token id or a list of token ids from 0 to {high - 1}")
        return tuple(dict.fromkeys(ids))
