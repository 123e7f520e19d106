"""From a prompt and media to token ids and features: helpers of ``gemma4_core.processor`` and of modality plugins."""

from __future__ import annotations

from gemma4_core.processing.kept import Kept, digest
from gemma4_core.processing.settings import file_values, processor_values
from gemma4_core.processing.sources import MediaSource, resolve

__all__ = ["Kept", "MediaSource", "digest", "file_values", "processor_values", "resolve"]
