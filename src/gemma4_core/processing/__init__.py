"""From a prompt and media to token ids and features: the processor, and helpers of modality plugins."""

from __future__ import annotations

from gemma4_core.processing.media_cache import BoundedCache, digest
from gemma4_core.processing.settings import file_values, processor_values
from gemma4_core.processing.sources import MediaSource, resolve

__all__ = ["BoundedCache", "MediaSource", "digest", "file_values", "processor_values", "resolve"]
