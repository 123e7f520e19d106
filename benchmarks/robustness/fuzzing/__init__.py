"""Structure-aware fuzzing of everything that reads bytes from outside; ``../fuzz.py`` is the command."""
