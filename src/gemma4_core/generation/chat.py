"""``Chat``: a conversation that remembers its turns and reuses the cache from one to the next."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import InputError
from gemma4_core.generation.answers import Answer

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.generation.parts import Part


class Chat:
    """A conversation with a model.

    ::

        chat = Chat(model, system="Answer in one sentence.")
        print(chat.send("What is this?", images=["photo.png"]).text)
        print(chat.regenerate().text)

    Args:
        model: with a tokenizer and a chat template.
        system: system prompt.
        thinking: lets the model think before it answers.
        tools: declarations of tools that the model may call.
        options: further options of ``stream_generate``, such as ``temperature`` and ``max_new_tokens``.

    Raises:
        InputError: an option that ``stream_generate`` does not take, naming the nearest.
    """

    def __init__(
        self, model: LoadedModel, system: str | None = None, *, thinking: bool = False, tools: Any = None,
        **options: Any,
    ) -> None:
        check_options(options)
        self.model, self.system, self.thinking, self.tools = model, system, thinking, tools
        self.options = options
        self.turns: list[dict[str, Any]] = []
        """The messages after the system prompt."""
        self.cache = model.make_cache()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def send(self, text: str, *, images: Any = (), audio: Any = (), videos: Any = (), **options: Any) -> Answer:
        """The answer to a message; ``options`` are those of ``stream_generate`` for this answer alone.

        ``images``, ``audio`` and ``videos`` are lists of files, URLs or arrays, or one. Raises InputError where the
        message cannot be answered; the conversation is then what it was. Ctrl-C (KeyboardInterrupt) ends an answer: the
        message stays in the conversation, with as much of the answer as there is.
        """
        media = [("image", images), ("audio", audio), ("video", videos)]
        parts = [{"type": kind, kind: value} for kind, values in media for value in _listed(values)]
        before = [part for part in parts if part["type"] != "audio"]
        after = [part for part in parts if part["type"] == "audio"]
        content: Any = [*before, {"type": "text", "text": text}, *after] if parts else text
        return self._answered([*self.turns, {"role": "user", "content": content}], options)

    def regenerate(self, **options: Any) -> Answer:
        """Another answer in place of the last one; Ctrl-C is as for ``send``. Raises InputError before any message."""
        return self._answered(self.turns[: self.last_question("regenerate") + 1], options)

    def undo(self) -> str:
        """Take back the last message and its answer; the message's text. Raises InputError where there is none."""
        index = self.last_question("undo")
        content = self.turns[index]["content"]
        del self.turns[index:]
        return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)

    def clear(self) -> None:
        """Start over; the system prompt stays."""
        self.turns = []
        self.cache.reset()

    def last_question(self, command: str) -> int:
        """The place of the last message among ``turns``. Raises InputError, naming the command, without one."""
        places = [index for index, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not places:
            raise InputError(f"{command}: there is no message yet")
        return places[-1]

    def parts(self, answer: Answer, **options: Any) -> Generator[Part, None, None]:
        """Yield the answer to the conversation as it stands, collecting it in ``answer``; ``keep`` adds it."""
        check_options(options)
        settings = {"tools": self.tools, "thinking": self.thinking, **self.options, **options}
        stream = self.model.stream_generate(self.messages, cache=self.cache, **settings)
        try:
            for part in stream:
                answer.take(part)
                yield part
        finally:
            answer.stats = answer.stats or stream.stats  # of an answer that was ended early

    def keep(self, answer: Answer) -> None:
        """Add what the model said, whole or not, to the conversation."""
        turn: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.tool_calls:
            turn["tool_calls"] = [{"type": "function", "function": dict(call)} for call in answer.tool_calls]
        self.turns.append(turn)

    def forget_cache(self) -> None:
        """Drop the cache and all captured graphs, after a step was cut off in the middle."""
        self.model.invalidate()
        self.cache = self.model.make_cache()

    def _answered(self, turns: list[dict[str, Any]], options: Mapping[str, Any]) -> Answer:
        """The answer to these turns, which are the conversation from then on."""
        before, self.turns, answer = self.turns, turns, Answer()
        try:
            for _ in self.parts(answer, **options):
                pass
        except (KeyboardInterrupt, GeneratorExit):
            self.forget_cache()
            self.keep(answer)
            raise
        except BaseException:
            self.turns = before
            raise
        self.keep(answer)
        return answer


def check_options(options: Mapping[str, Any]) -> None:
    """Raise InputError for an option that ``stream_generate`` does not take, or that a chat sets itself."""
    from gemma4_core.generation.keywords import check_keywords, media_keywords
    from gemma4_core.generation.loaded_model import LoadedModel

    if "cache" in options:
        raise InputError("cache: a chat has a cache of its own")
    check_keywords(LoadedModel.stream_generate, options, media_keywords())


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, list | tuple) else [values]
