"""``gemma4 doctor``: checks a machine and a checkpoint."""
