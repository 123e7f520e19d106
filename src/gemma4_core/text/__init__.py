"""Text around the model: chat templates, prompts, answers, stop strings."""

from gemma4_core.text.answer import AnswerSplitter, ControlTokens, Piece
from gemma4_core.text.calls import ToolCall, parse_call
from gemma4_core.text.prompt import has_text, prompt_ids
from gemma4_core.text.settings import TokenizerSettings
from gemma4_core.text.stops import StopStrings
from gemma4_core.text.template import ChatTemplate

__all__ = [
    "AnswerSplitter",
    "ChatTemplate",
    "ControlTokens",
    "Piece",
    "StopStrings",
    "TokenizerSettings",
    "ToolCall",
    "has_text",
    "parse_call",
    "prompt_ids",
]
