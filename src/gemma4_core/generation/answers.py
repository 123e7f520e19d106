"""``Answer``: what the parts of an answer amount to."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma4_core.generation.parts import Part, Stats


@dataclass
class Answer:
    """An answer, collected from its parts."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[Mapping[str, Any]] = field(default_factory=list)
    """Objects with ``name`` and ``arguments``."""
    tokens: list[int] = field(default_factory=list)
    """The generated ids, without the stop id."""
    logprobs: list[float] = field(default_factory=list)
    """Of each of ``tokens``."""
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    """For each of ``tokens`` the likeliest ids with their log-probabilities, where they were asked for."""
    finish_reason: str | None = None
    """``stop``, ``length``, ``tool_call`` or ``cancelled``; None for an answer that was ended early."""
    stats: Stats | None = None
    error: str | None = None
    """Why there is no answer, or no more of it; None where all is well."""
    choice: int = 0
    """Which of several answers to one request it is."""

    def take(self, part: Part) -> None:
        """Add a part."""
        if part.token is not None:
            self.tokens.append(int(part.token))
            self.logprobs.append(float(part.logprob or 0.0))
            if part.top_logprobs is not None:
                self.top_logprobs.append(list(part.top_logprobs))
        if part.kind == "thinking":
            self.thinking += part.text
        elif part.kind == "tool_call" and part.tool_call is not None:
            self.tool_calls.append(part.tool_call)
        else:
            self.text += part.text
        if part.finish_reason is not None:
            self.finish_reason, self.stats, self.error = part.finish_reason, part.stats, part.error

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        thought = f"<details><summary>thinking</summary><pre>{html.escape(self.thinking)}</pre></details>"
        calls = "".join(f"<pre>{html.escape(str(dict(call)))}</pre>" for call in self.tool_calls)
        facts = f"<p>{html.escape(', '.join(self._facts()))}</p>"
        return f"{thought if self.thinking else ''}<pre>{html.escape(self.text)}</pre>{calls}{facts}"

    def _facts(self) -> list[str]:
        """Why it ended, and its counts and speeds, in words."""
        found = [self.finish_reason or "stopped early"]
        if self.stats is not None:
            s = self.stats
            found.append(f"prompt {s.prompt_tokens} tokens ({s.reused_tokens} reused, {s.prompt_tps:.0f} tok/s)")
            found.append(f"answer {s.generated_tokens} tokens ({s.generation_tps:.1f} tok/s)")
        return found
