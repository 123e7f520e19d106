"""``gemma4 chat``: a conversation in the terminal."""
