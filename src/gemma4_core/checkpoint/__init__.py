"""Checkpoints: finding, opening, reading, checking and writing them. tinygrad is imported only for tensors.

Names are imported on first use.
"""

from __future__ import annotations

from gemma4_core.lazy_names import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gemma4_core.checkpoint.atomic import atomic_file, atomic_folder
    from gemma4_core.checkpoint.blocks import RowBlocks, TensorBlocks
    from gemma4_core.checkpoint.check import check_tensors
    from gemma4_core.checkpoint.contents import replaceable_adapter
    from gemma4_core.checkpoint.context import read_context
    from gemma4_core.checkpoint.convert import STORED, float32_values
    from gemma4_core.checkpoint.files import CheckpointFiles
    from gemma4_core.checkpoint.header import Entry
    from gemma4_core.checkpoint.hub import LAST, resolve_folder
    from gemma4_core.checkpoint.opening import open_checkpoint, run_dtype
    from gemma4_core.checkpoint.progress import Silent
    from gemma4_core.checkpoint.random_weights import write_random_checkpoint
    from gemma4_core.checkpoint.rewrite import check_out, rewrite_checkpoint
    from gemma4_core.checkpoint.shard import Shard
    from gemma4_core.checkpoint.snapshots import cached_snapshot
    from gemma4_core.checkpoint.streaming import stream_weights
    from gemma4_core.checkpoint.unserved import check_stored
    from gemma4_core.checkpoint.writer import Planned, write_file, write_shards

__all__ = [
    "LAST",
    "STORED",
    "CheckpointFiles",
    "Entry",
    "Planned",
    "RowBlocks",
    "Shard",
    "Silent",
    "TensorBlocks",
    "atomic_file",
    "atomic_folder",
    "cached_snapshot",
    "check_out",
    "check_stored",
    "check_tensors",
    "float32_values",
    "open_checkpoint",
    "read_context",
    "replaceable_adapter",
    "resolve_folder",
    "rewrite_checkpoint",
    "run_dtype",
    "stream_weights",
    "write_file",
    "write_random_checkpoint",
    "write_shards",
]

__getattr__, __dir__ = lazy_names(__name__, {
    "atomic": "atomic_file atomic_folder",
    "blocks": "RowBlocks TensorBlocks",
    "check": "check_tensors",
    "context": "read_context",
    "contents": "replaceable_adapter",
    "convert": "STORED float32_values",
    "files": "CheckpointFiles",
    "header": "Entry",
    "hub": "LAST resolve_folder",
    "opening": "open_checkpoint run_dtype",
    "progress": "Silent",
    "random_weights": "write_random_checkpoint",
    "rewrite": "check_out rewrite_checkpoint",
    "shard": "Shard",
    "snapshots": "cached_snapshot",
    "streaming": "stream_weights",
    "unserved": "check_stored",
    "writer": "Planned write_file write_shards",
})  # fmt: skip
