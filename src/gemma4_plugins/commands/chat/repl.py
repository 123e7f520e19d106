"""The loop of ``gemma4 chat``: messages in, answers out, and commands that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from gemma4_core.cli.answers import Printer, stats_line
from gemma4_core.cli.failures import report
from gemma4_core.cli.interrupt import Interrupt
from gemma4_core.cli.output import note
from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.generation.answers import Answer
from gemma4_plugins.commands.chat.conversation import Conversation
from gemma4_plugins.commands.chat.line_editor import QUOTES, LineReader
from gemma4_plugins.commands.chat.settings import SAMPLING_OPTIONS, option_name, setting, shown_setting

if TYPE_CHECKING:
    from gemma4_core.generation.parts import Part

STOPPING = "stopping after this step; Ctrl-C again stops at once"
HELP = [
    ("/help", "show this"),
    ("/regenerate", "answer the last message again"),
    ("/undo", "remove the last message and its answer"),
    ("/clear", "forget the conversation; the system prompt stays"),
    ("/system [TEXT]", "set the system prompt, or show it"),
    ("/thinking on|off", "let the model think before it answers"),
    ("/set [NAME VALUE]", "change a sampling option, or show all"),
    ("/stats", "counts and speeds of the last answer"),
    ("/save FILE", "write the conversation as JSON"),
    ("/load FILE", "continue a saved conversation"),
    ("/exit", "leave (as Ctrl-D does)"),
]
WITH_FILES = ("save", "load")
"""Commands that take a path, besides those that attach a file."""


class Repl:
    """Reads messages and commands until the user leaves."""

    def __init__(self, conversation: Conversation, lines: LineReader, show_stats: bool = False) -> None:
        self.conversation = conversation
        self.lines = lines
        self.show_stats = show_stats
        self.leaving = False
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self.help, "?": self.help, "clear": self.clear, "system": self.system, "thinking": self.thinking,
            "stats": self.stats, "save": self.save, "load": self.load, "regenerate": self.regenerate,
            "undo": self.undo, "set": self.set, "exit": self.exit, "quit": self.exit, "bye": self.exit,
        }
        lines.complete = self.complete

    def run(self) -> None:
        """Run the loop. At a terminal failures are shown and the loop continues; a pipe ends at the first one."""
        while not self.leaving:
            try:
                text = self.lines.next()
            except KeyboardInterrupt:
                note("\n(/exit or Ctrl-D leaves)")
                continue
            if text is None:
                break
            try:
                self.handle(text)
            except Exception as error:
                if not self.lines.interactive or isinstance(error, BrokenPipeError):
                    raise
                report(error)
                if not isinstance(error, Gemma4Error):
                    self.conversation.forget_cache()
        if self.lines.interactive and not self.leaving:
            print(file=sys.stderr)

    def handle(self, text: str) -> None:
        """Answer one message or run one command. Raises a Gemma4Error where that fails."""
        if text.startswith("/"):
            self.run_command(text)
        elif text.strip():
            self.answer(text)

    def run_command(self, text: str) -> None:
        """Run a command. Raises InputError for an unknown one."""
        name, _, rest = text[1:].partition(" ")
        rest = rest.strip()
        if name in self.commands:
            self.commands[name](rest)
        elif name in self.conversation.towers():
            self.conversation.attach(name, _unquoted(rest))
            note(f"{rest} will be sent with your next message")
        elif name in ("image", "audio", "video"):
            self.conversation.attach(name, rest)  # raises, saying that no tower is loaded for it
        else:
            raise InputError(f"/{name[:60]}: no such command; /help lists them (start with a space to send it to the "
                             "model)")

    def complete(self, before: str, word: str) -> list[str] | None:
        """What Tab offers, given the text before the word and the word; None offers file names."""
        name = before.strip().removeprefix("/")
        kinds = [kind for kind in self.conversation.towers()]
        if not before.strip():
            offered = [f"/{command}" for command in (*self.commands, *kinds) if command != "?"]
        elif not before.startswith("/"):
            return []
        elif name in (*WITH_FILES, *kinds):
            return None
        else:
            offered = {"thinking": ["on", "off"], "set": list(SAMPLING_OPTIONS)}.get(name, [])
        return [item for item in offered if item.startswith(word)]

    def answer(self, text: str) -> None:
        """Generate and show the answer to a message."""
        self._show(self.conversation.ask, text)

    def _show(self, ask: Callable[..., Generator[Part, None, None]], *args: str) -> None:
        """Show an answer. Ctrl-C stops it; what came until then stays in the conversation."""
        talk, printer, answer = self.conversation, Printer(), Answer()
        try:
            with Interrupt(STOPPING) as interrupt:
                parts = ask(*args, answer)
                for part in parts:
                    printer.show(part)
                    if interrupt.asked:
                        break
                parts.close()
        except KeyboardInterrupt:
            talk.forget_cache()
        except BaseException:
            printer.end()
            talk.drop()
            raise
        printer.end()
        talk.keep(answer)
        if answer.finish_reason is None:
            note("(stopped)")
        elif answer.finish_reason == "length":
            note("(cut off: --max-new-tokens or the context is used up)")
        if self.show_stats and answer.stats is not None:
            self.stats("")

    # ------------------------------------------------------------------------------------------- commands

    def help(self, rest: str) -> None:
        """``/help``"""
        attachments = [(f"/{kind} PATH", f"attach a file ({spec.name}) to your next message")
                       for kind, spec in self.conversation.towers().items()]
        for usage, meaning in [*HELP[:-1], *attachments, HELP[-1]]:
            note(f"{usage:<18}{meaning}")
        note(f"{QUOTES} begins and ends a message of several lines. Ctrl-C stops an answer. Tab completes.")

    def regenerate(self, rest: str) -> None:
        """``/regenerate``"""
        self.conversation.last_question("/regenerate")  # raises InputError where there is no message
        before = list(self.conversation.turns)
        try:
            self._show(self.conversation.ask_again)
        except BaseException:
            self.conversation.turns = before
            raise

    def undo(self, rest: str) -> None:
        """``/undo``"""
        self.conversation.last_question("/undo")
        taken = self.conversation.undo()
        note(f"(removed: {' '.join(taken.split())[:60]})")

    def set(self, rest: str) -> None:
        """``/set [NAME VALUE]``"""
        name, _, value = rest.partition(" ")
        if name:
            self.conversation.options |= setting(name, value.strip())
        for option in SAMPLING_OPTIONS:
            if not name or option == option_name(name):
                note(f"{option:<20}{shown_setting(self.conversation.options.get(option))}")

    def load(self, rest: str) -> None:
        """``/load FILE``"""
        if not rest:
            raise InputError("/load: give a file that /save wrote")
        self.conversation.load(_unquoted(rest))
        note(f"loaded {len(self.conversation.messages)} messages from {_unquoted(rest)}")

    def clear(self, rest: str) -> None:
        """``/clear``"""
        self.conversation.clear()
        note("(forgotten)")

    def system(self, rest: str) -> None:
        """``/system [TEXT]``"""
        if rest:
            self.conversation.system = rest
        note(f"system prompt: {self.conversation.system or '(none)'}")

    def thinking(self, rest: str) -> None:
        """``/thinking on|off``"""
        if rest.lower() not in ("on", "off", ""):
            raise InputError(f"/thinking {rest[:60]}: give on or off")
        if rest:
            self.conversation.thinking = rest.lower() == "on"
        note(f"thinking is {'on' if self.conversation.thinking else 'off'}")

    def stats(self, rest: str) -> None:
        """``/stats``"""
        stats = self.conversation.stats
        note(stats_line(stats, self.conversation.finish_reason) if stats is not None else "(no answer yet)")

    def save(self, rest: str) -> None:
        """``/save FILE``"""
        if not rest:
            raise InputError("/save: give a file to write the conversation to")
        self.conversation.save(_unquoted(rest))
        note(f"saved {len(self.conversation.messages)} messages to {_unquoted(rest)}")

    def exit(self, rest: str) -> None:
        """``/exit``"""
        self.leaving = True


def _unquoted(text: str) -> str:
    """A path without the quotes that terminals put around a dropped file."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
