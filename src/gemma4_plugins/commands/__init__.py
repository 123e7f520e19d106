"""The commands of ``gemma4``, each behind an entry point of the group ``gemma4.commands``."""
