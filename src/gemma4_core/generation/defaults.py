"""How tokens are chosen where a request does not say: as the folder's generation_config.json does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma4_core.config import GenerationConfig

FILTERS = ("top_k", "top_p", "min_p")
SAMPLING = (
    "temperature", *FILTERS, "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed",
    "ignore_eos", "draft", "num_draft_tokens",
)
"""Keywords of a request that say how tokens are chosen."""


def sampling(config: GenerationConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling arguments of ``stream_generate``: the given options, else those of the folder's generation_config.json.

    A filter (``--top-k``, ``--top-p``, ``--min-p``) turns sampling on where the folder's default is greedy.
    """
    asked = {name: given[name] for name in SAMPLING if given.get(name) is not None and given[name] != ()}
    if "logit_bias" in asked:
        asked["logit_bias"] = dict(asked["logit_bias"])  # pairs on the command line
    greedy = not config.do_sample and "temperature" not in asked and not any(asked.get(name) for name in FILTERS)
    defaults: dict[str, Any] = {"repetition_penalty": config.repetition_penalty}
    defaults["temperature"] = 0.0 if greedy else config.temperature
    if config.do_sample:
        defaults |= {name: getattr(config, name) for name in FILTERS}
    return defaults | asked
