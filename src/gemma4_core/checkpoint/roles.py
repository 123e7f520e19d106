"""What a weight is in the model, and which weights are worth quantising."""

from __future__ import annotations

from collections.abc import Sequence

from gemma4_core.config import GemmaConfig, expected_text_tensors, ignorable, released_name

TABLE, MATRIX, EXPERTS, VECTOR, OTHER = "table", "matrix", "experts", "vector", "other"
TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight")
ROUTER = "router.proj.weight"


class Roles:
    """The roles of a checkpoint's tensors.

    ``table`` is an embedding table, ``matrix`` one of a decoder layer, ``experts`` a stack of matrices, ``vector``
    anything of fewer dimensions, and ``other`` what is not part of the text model, such as a tower's weights.
    """

    def __init__(self, config: GemmaConfig) -> None:
        self.config, self.text = config, expected_text_tensors(config)

    def of(self, name: str, shape: Sequence[int]) -> str:
        """The role of a tensor by its stored or released name."""
        name = released_name(self.config, name, self.text)
        if name not in self.text and not ignorable(self.config, name):
            return OTHER
        if len(shape) < 2:
            return VECTOR
        if len(shape) == 3:
            return EXPERTS
        return TABLE if name.endswith(TABLES) else MATRIX


def quantizable(name: str, role: str) -> bool:
    """Whether a weight is worth quantising: tables, matrices and expert stacks of the text model, but not routers,
    which are small and on which everything depends.

    Args:
        name: the weight's checkpoint name.
        role: its role, as ``Roles.of`` and ``WeightBlocks.role`` give it.
    """
    return role in (TABLE, MATRIX, EXPERTS) and not name.endswith(ROUTER)
