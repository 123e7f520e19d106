"""Answer many prompts of a file."""
