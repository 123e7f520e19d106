"""The model: text decoder, cache and what ties them to towers and weights."""

from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.model import GemmaModel

__all__ = ["GemmaCache", "GemmaModel"]
