"""Built-in plugins; each module is found through its own entry point."""
