"""OpenAI's bodies: what a chat completion asks for, checked, and what it says."""

from __future__ import annotations

from gemma4_core.generation.defaults import SAMPLING, sampling
from gemma4_core.json_lines import check_text, parsed
from gemma4_core.openai.completions import alone, arguments, choice, likely, reason, token_logprobs, usage
from gemma4_core.openai.parameters import IGNORED, KNOWN, choose_tools, parameters

__all__ = [
    "IGNORED",
    "KNOWN",
    "SAMPLING",
    "alone",
    "arguments",
    "check_text",
    "choice",
    "choose_tools",
    "likely",
    "parameters",
    "parsed",
    "reason",
    "sampling",
    "token_logprobs",
    "usage",
]
