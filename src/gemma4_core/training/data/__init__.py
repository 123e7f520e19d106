"""Examples from JSON Lines: read and checked, encoded with masks, made into batches."""

from gemma4_core.training.data.batches import Batches
from gemma4_core.training.data.examples import Encoding, Example, Examples, modalities_of, read_examples
from gemma4_core.training.data.records import Record, read_records

__all__ = [
    "Batches",
    "Encoding",
    "Example",
    "Examples",
    "Record",
    "modalities_of",
    "read_examples",
    "read_records",
]
