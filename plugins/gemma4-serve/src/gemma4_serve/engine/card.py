"""What clients are told about the model that is served."""

from __future__ import annotations

import time
from collections.abc import Mapping

import gemma4_core
from gemma4_core import LoadedModel
from gemma4_serve.engine.contract import ModelCard
from gemma4_serve.settings import Settings


def model_card(model: LoadedModel, settings: Settings, context: int, adapters: Mapping[str, str]) -> ModelCard:
    """The card of a loaded model; ``adapters`` are names for clients with the model's own."""
    path = model.context.path
    own = path.name if path is not None else "gemma4"
    return ModelCard(
        name=settings.alias or own,
        created=int(time.time()),
        context=context,
        vocabulary=model.config.text_config.vocab_size,
        modalities=tuple(spec.media_option.keyword for spec in model.tower_specs),
        adapters=dict(adapters),
        fingerprint=f"{model.format_name}-{model.device_name}-{gemma4_core.__version__}",
        text=getattr(model.tokenizer, "has_text", True),
        template=model.template is not None,
    )
