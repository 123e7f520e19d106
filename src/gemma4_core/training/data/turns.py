"""Where the model's own turns stand in the ids of a conversation, told from the chat template itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemma4_core.errors import TokenizerError

if TYPE_CHECKING:
    from gemma4_core.descriptions import Tokenizer
    from gemma4_core.text import ChatTemplate

RESULT_BEGIN, RESULT_END = "<|tool_response>", "<tool_response|>"
"""What a tool says stands inside the model's turn and is not the model's; the first of these is."""
ASKED, ANSWERED, AGAIN = "Quartz", "Basalt", "Flint"
"""Contents of a conversation that shows what the template writes around them."""


@dataclass(frozen=True)
class Turns:
    """The ids between which the model speaks."""

    opening: tuple[int, ...]
    """Such as those of ``<|turn>model`` and a line end."""
    closing: tuple[int, ...]
    """Such as that of ``<turn|>``, which the model has to learn too."""
    result_begin: int | None = None
    result_end: int | None = None

    def spoken(self, ids: Sequence[int]) -> np.ndarray:
        """bool ``[T]``: True where the id is the model's own, its turn's end included."""
        held = list(ids)
        mask = np.zeros(len(held), np.bool_)
        at = find(held, self.opening, 0)
        while at >= 0:
            first = at + len(self.opening)
            end = find(held, self.closing, first)
            last = len(held) if end < 0 else end + len(self.closing)
            mask[first:last] = True
            self._leave_results_out(held, mask, first, last)
            at = find(held, self.opening, last)
        return mask

    def _leave_results_out(self, ids: list[int], mask: np.ndarray, first: int, last: int) -> None:
        """Unmark tool results: the model opens them and stops there."""
        inside = False
        for index in range(first, last):
            if inside:
                mask[index] = False
            if ids[index] == self.result_begin:
                inside = True
            elif ids[index] == self.result_end:
                inside = False


def find(ids: Sequence[int], wanted: Sequence[int], start: int) -> int:
    """The first place from ``start`` where a run of ids stands, -1 where it does not."""
    size = len(wanted)
    for index in range(start, len(ids) - size + 1):
        if ids[index] == wanted[0] and tuple(ids[index : index + size]) == tuple(wanted):
            return index
    return -1


def common(one: str, two: str) -> str:
    """What two texts begin with."""
    size = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return one[:size]


def turns_of(template: ChatTemplate, tokenizer: Tokenizer) -> Turns | None:
    """What the template writes around the model's turns; None where that is not always the same, or nothing."""
    user = lambda text: {"role": "user", "content": text}  # noqa: E731
    asked = [user(ASKED)]
    answered = [*asked, {"role": "assistant", "content": ANSWERED}]
    try:
        whole = template.render([*answered, user(AGAIN)], add_generation_prompt=False)
        question = template.render(asked, add_generation_prompt=False).rpartition(ASKED)[2]
        answer = template.render(answered, add_generation_prompt=False).rpartition(ANSWERED)[2]
    except TokenizerError:
        return None
    if any(word not in whole for word in (ASKED, ANSWERED, AGAIN)):
        return None
    before = whole.split(ASKED, 1)[1].split(ANSWERED, 1)[0]
    after = whole.split(ANSWERED, 1)[1].split(AGAIN, 1)[0]
    opening = before[len(common(before, question)) :]
    closing = common(after, answer).rstrip()
    if not opening.strip() or not closing or any(word in opening + closing for word in (ASKED, ANSWERED, AGAIN)):
        return None
    special = tokenizer.special_tokens
    return Turns(
        tuple(tokenizer.encode(opening)), tuple(tokenizer.encode(closing)),
        special.get(RESULT_BEGIN), special.get(RESULT_END),
    )
