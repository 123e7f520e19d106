"""How an answer is shown: as text while it comes, as JSON, and its statistics on one line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gemma4_core.cli.output import DIM, PLAIN, colour, on_terminal, write
from gemma4_core.formatting import human_bytes, three_digits

if TYPE_CHECKING:
    from gemma4_core.generation.answers import Answer
    from gemma4_core.generation.parts import Part, Stats

UNSAFE = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if code not in (9, 10)}
"""Control characters, with which a model could control the terminal. Files and pipes get them unchanged."""


def stats_line(stats: Stats, finish_reason: str | None) -> str:
    """Counts and speeds of an answer on one line."""
    values = stats.as_dict()
    reused = f" ({values['reused_tokens']} reused)" if values["reused_tokens"] else ""
    prompt = f"prompt {values['prompt_tokens']} tokens{reused} in {values['prompt_seconds']:.2f} s"
    answer = f"answer {values['generated_tokens']} tokens in {values['generation_seconds']:.2f} s"
    parts = [prompt + rate(values["prompt_tps"]), answer + rate(values["generation_tps"])]
    for name, time in values["media"].items():
        parts.append(f"{name} {time['seconds']:.2f} s ({three_digits(time['seconds_each'])} s per {time['unit']})")
    if values["drafted_tokens"]:
        parts.append(f"drafts {values['accepted_tokens']} of {values['drafted_tokens']} tokens accepted")
    if values.get("peak_memory_bytes"):
        parts.append(f"peak memory {human_bytes(values['peak_memory_bytes'])}")
    if values.get("load_seconds"):
        parts.append(f"loaded in {values['load_seconds']:.1f} s")
    return " · ".join([*parts, *([finish_reason] if finish_reason else [])])


def rate(per_second: float) -> str:
    """``(12.3 tok/s)``; empty where the speed is unknown."""
    return f" ({three_digits(per_second)} tok/s)" if per_second else ""


def answer_json(answer: Answer, textless: bool, logprobs: bool = False) -> dict[str, Any]:
    """The object that ``--json`` prints; ``thinking`` and ``tool_calls`` only where there are any, ``logprobs`` and
    ``top_logprobs`` where they were asked for."""
    stats = answer.stats.as_dict() if answer.stats is not None else {}
    found: dict[str, Any] = {
        "text": None if textless else answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": stats.get("prompt_tokens"),
        "stats": stats,
    }
    if answer.thinking:
        found["thinking"] = answer.thinking
    if answer.tool_calls:
        found["tool_calls"] = [dict(call) for call in answer.tool_calls]
    if logprobs:
        found["logprobs"], found["top_logprobs"] = answer.logprobs, answer.top_logprobs
    return found


class Printer:
    """Writes an answer to stdout as it comes: text, a line of JSON for each tool call, or ids without a tokenizer.

    Thinking is shown on stderr, dim, where that is a terminal.
    """

    def __init__(self, textless: bool = False, stream: bool = True) -> None:
        """``stream`` False writes the answer only in ``end``."""
        self.textless = textless
        self.held: list[str] | None = None if stream else []
        self.thinking = False
        self.fresh = True
        """Whether stdout is at the beginning of a line."""
        self.empty = True
        self.terminal = sys.stdout.isatty()

    def show(self, part: Part) -> None:
        """Write one part."""
        if part.kind == "thinking":
            self._show_thinking(part.text)
            return
        if self.thinking and (part.text or part.finish_reason):
            self._end_thinking()
        if part.kind == "tool_call":
            self._write(("" if self.fresh else "\n") + part.text + "\n")
        elif self.textless and part.token is not None:
            self._write(f"{'' if self.empty else ','}{part.token}")
        elif part.text:
            self._write(part.text)

    def end(self) -> None:
        """End the line that the answer stands on."""
        if self.thinking:
            self._end_thinking()
        if not self.fresh:
            self._write("\n")
        if self.held:
            write("".join(self.held))
            self.held.clear()

    def _write(self, text: str) -> None:
        shown = text.translate(UNSAFE) if self.terminal else text
        if self.held is None:
            write(shown)
        else:
            self.held.append(shown)
        self.fresh, self.empty = text.endswith("\n"), False

    def _show_thinking(self, text: str) -> None:
        if text and on_terminal():
            self.thinking = True
            sys.stderr.write(f"{DIM}{text}{PLAIN}" if colour() else text)
            sys.stderr.flush()

    def _end_thinking(self) -> None:
        self.thinking = False
        sys.stderr.write("\n")
        sys.stderr.flush()


def show_all(parts: Iterable[Part], printer: Printer | None) -> Answer:
    """Collect an answer, printing it on the way."""
    from gemma4_core.generation.answers import Answer

    answer = Answer()
    for part in parts:
        answer.take(part)
        if printer is not None:
            printer.show(part)
    if printer is not None:
        printer.end()
    return answer
