"""The engine: runs decoder steps as captured graphs or single launches."""
