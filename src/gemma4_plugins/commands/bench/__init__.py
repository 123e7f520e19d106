"""``gemma4 bench``: measures speed."""
