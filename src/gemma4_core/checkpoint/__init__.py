"""Checkpoint folders: reading, checking and writing safetensors files. tinygrad is imported only for tensors."""

from gemma4_core.checkpoint.atomic import atomic_file, atomic_folder
from gemma4_core.checkpoint.check import check_tensors
from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.checkpoint.random_weights import write_random_checkpoint
from gemma4_core.checkpoint.writer import Planned, write_shards

__all__ = [
    "CheckpointFiles",
    "Planned",
    "atomic_file",
    "atomic_folder",
    "check_tensors",
    "write_random_checkpoint",
    "write_shards",
]
