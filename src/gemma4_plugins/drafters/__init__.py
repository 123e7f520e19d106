"""Drafters: what proposes the tokens that may follow."""
