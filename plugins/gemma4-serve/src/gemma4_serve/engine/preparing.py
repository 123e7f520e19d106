"""From what a client asked to a ``Request`` with its ids: template, media, tokens. Runs in a pool, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma4_core import Gemma4Error, LoadedModel, Request, registry
from gemma4_core.openai import KNOWN, sampling
from gemma4_serve.engine.contract import Asked
from gemma4_serve.errors import ApiError, refused, too_long, wrong
from gemma4_serve.settings import Settings

RENDERING = ("tools", "thinking")


class Preparing:
    """Prepares prompts for a model."""

    def __init__(self, model: LoadedModel, settings: Settings, context: int) -> None:
        self.model, self.settings, self.context = model, settings, context
        if model.template is not None:
            model.template.seconds = settings.limits.template_seconds

    def get_ready(self) -> None:
        """Do what the first request with a form would wait for. Raises InputError."""
        if registry.constraints:
            backend = registry.select("constraint", self.model.context)
            if backend.prepare is not None:
                backend.prepare(self.model.tokenizer)

    def inputs(self, asked: Asked) -> Any:
        """A prompt's ids and features, or its ids. Raises ApiError."""
        if asked.kind == "tokens":
            return list(asked.prompt)
        if not getattr(self.model.tokenizer, "has_text", True):
            raise wrong("this model is served without a tokenizer; give token ids")
        if asked.kind == "prompt":
            return self.model.processor.prepare_inputs(asked.prompt)
        if self.model.template is None:
            raise wrong("this model has no chat template; use /v1/completions", "messages")
        # what people and tools write is text, whatever special tokens it spells
        return self.model.processor.prepare_inputs(asked.prompt, literal=True, **rendering(asked))

    def ids(self, asked: Asked) -> list[int]:
        """A prompt's ids. Raises ApiError."""
        try:
            made = self.inputs(asked)
        except Gemma4Error as error:
            raise refused(error, KNOWN) from error
        return made if isinstance(made, list) else made.input_ids

    def rendered(self, asked: Asked) -> str:
        """The text that the template makes of messages. Raises ApiError."""
        if self.model.template is None:
            raise wrong("this model has no chat template", "messages")
        try:
            return self.model.template.render(asked.prompt, **rendering(asked))
        except Gemma4Error as error:
            raise refused(error, KNOWN) from error

    def request(self, asked: Asked) -> tuple[Request, int]:
        """The request, its prompt prepared, and how many tokens that has. Raises ApiError."""
        try:
            made = self.inputs(asked)
            ids = made if isinstance(made, list) else made.input_ids
            if len(ids) > self.context:
                raise too_long(len(ids), self.context)
            options = dict(asked.options)
            options |= sampling(self.model.generation_config, options)
            options.setdefault("draft", self.settings.draft)
            if options.get("tools") and registry.constraints:
                options.setdefault("constraint", {"tools": "auto"})  # a call that the model begins is whole and parses
            options["deadline"] = self.settings.limits.seconds
            prompt = {"prompt_tokens": made} if isinstance(made, list) else {"prompt": made}
            request = Request(**prompt, **options)
            self._check_form(request)
            return request, len(ids)
        except Gemma4Error as error:
            raise refused(error, KNOWN) from error

    def _check_form(self, request: Request) -> None:
        """Build the constraint that is asked for once, away from the device's thread: whatever is wrong with it is this
        request's fault alone."""
        form = request.constraint
        if form is None:
            return
        if not registry.constraints:
            raise wrong("answers of a given form need the package gemma4-schema, which this server does not have",
                        "tool_choice" if isinstance(form, Mapping) and "tools" in form else "response_format")
        try:
            request.check_constraint(self.model)
        except Gemma4Error:
            raise
        except Exception as error:
            raise ApiError(400, f"the form that was asked for cannot be used ({type(error).__name__})") from error


def rendering(asked: Asked) -> dict[str, Any]:
    """The options that a chat template takes."""
    return {name: asked.options[name] for name in RENDERING if name in asked.options}
