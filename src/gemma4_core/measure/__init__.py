"""Measurements of a loaded model: speed, single operations, how well it predicts a text."""
