"""One plugin of each kind for gemma4."""
