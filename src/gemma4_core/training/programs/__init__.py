"""Training steps as programs per kind of layer: each is traced and compiled once, then linked for all layers."""
