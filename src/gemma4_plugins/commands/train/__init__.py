"""``gemma4 train``: fine-tunes a model."""
