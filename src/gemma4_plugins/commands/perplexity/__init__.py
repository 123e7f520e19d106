"""``gemma4 perplexity``: measures how well a model predicts a text."""
