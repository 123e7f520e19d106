"""``python -m gemma4_core`` is ``gemma4``."""

from gemma4_core.cli import main

main()
