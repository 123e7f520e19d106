"""Constraints from specifications, by whichever installed package builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemma4_core.contracts import ANSWER_KEY, AnswerContext, Constraint, Context, Tokenizer
from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.plugins import registry
from gemma4_core.plugins.separate_packages import missing, owner_of_kind

if TYPE_CHECKING:
    from gemma4_core.processing.processor import GemmaMultimodalProcessor


def build_constraint(
    tokenizer: Tokenizer, context: Context, specification: Mapping[str, Any], answer: AnswerContext
) -> Constraint:
    """The constraint of one answer. Raises InputError for a specification that cannot be served, and where no package
    builds constraints, naming ours."""
    if not registry.constraints:
        package, what = owner_of_kind("constraint"), f"constraint {shown(dict(specification))}"
        raise InputError(missing(what, package) if package else f"{what}: no loaded plugin builds constraints")
    backend = registry.select("constraint", context)
    return backend.build(tokenizer, {**specification, ANSWER_KEY: answer})


def check_constraint(processor: GemmaMultimodalProcessor, specification: Mapping[str, Any]) -> None:
    """Build a constraint that no answer gets, before weights are read. Raises InputError."""
    config = processor.context.config
    assert config is not None
    answer = AnswerContext(config.text_config.vocab_size, tuple(config.eos_token_ids) or (0,))
    build_constraint(processor.tokenizer.inner, processor.context, specification, answer)
