"""Cross entropy over a large vocabulary, in pieces whose logits are recomputed in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinygrad import Tensor, UOp, dtypes, function
from tinygrad.nn.state import get_state_dict

from gemma4_core.model.differentiable import DeviceInputs, device_inputs, hidden
from gemma4_core.model.layers import matrix
from gemma4_core.ops.differentiable import differentiable_operations
from gemma4_core.ops.portable import cross_entropy
from gemma4_core.training.batch import GemmaTrainingBatch, check_segments, checked

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel
    from gemma4_core.ops import Operations
    from gemma4_core.weights import Matrix

PIECE = 1 << 26
"""Logits held at once: 256 MiB in fp32."""


def compute_loss(model: GemmaModel, batch: GemmaTrainingBatch, *, checkpointing: bool = False) -> Tensor:
    """The mean cross entropy over all unmasked targets: a differentiable fp32 scalar.

    Take gradients with ``loss.gradient(*tensors)``; with ``checkpointing``, which recomputes layers in the backward
    pass for less memory, realize ``gradient.contiguous()``: tinygrad 0.14 keeps no result that is a function's own
    output, and would recompute it at each look. Raises InputError for a batch that does not fit the model.
    """
    ids, targets = checked(model, batch)
    inputs = device_inputs(model, ids, batch.media, check_segments(batch.segments, ids))
    return mean_loss(model, inputs, Tensor(targets, device=model.device), checkpointing)


def mean_loss(model: GemmaModel, inputs: DeviceInputs, targets: Tensor, checkpointing: bool = False) -> Tensor:
    """The loss of prepared inputs. ``targets [B, T]`` int32, negative where there is none."""
    h = hidden(model, inputs, checkpointing)
    rows = h.reshape(-1, h.shape[-1])  # [B, T, H] -> [B * T, H]
    flat = targets.reshape(-1)
    head, cap = matrix(model.text.embedding), model.config.text_config.final_logit_softcapping
    operations = differentiable_operations(model.operations, checkpointing)
    pieces = max(1, -(-int(rows.shape[0]) * head.shape[0] // PIECE))
    if pieces == 1:
        total = summed(rows, flat, head, cap, operations)
    else:
        total = in_pieces(rows, flat, head, cap, operations, pieces)
    return total / (flat >= 0).sum().cast(dtypes.float32)


def summed(rows: Tensor, targets: Tensor, head: Matrix, cap: float | None, operations: Operations) -> Tensor:
    """The sum of the cross entropies of ``rows [n, H]`` against ``targets [n]``."""
    if operations.cross_entropy is not None:
        return operations.cross_entropy(rows, targets, head, cap).sum()
    return cross_entropy(operations.logits(rows, head, cap), targets).sum()


def in_pieces(
    rows: Tensor, targets: Tensor, head: Matrix, cap: float | None, operations: Operations, pieces: int
) -> Tensor:
    """As ``summed``, with the logits of one piece at a time in memory, forward and backward.

    Each piece is a compiled function of its own, so that its buffers are free when it ends; the gradient of the head
    is carried from piece to piece instead of being held once for each.
    """
    count = int(rows.shape[0])
    step = -(-count // pieces)
    row_pieces = [rows[first : min(first + step, count)].contiguous() for first in range(0, count, step)]
    target_pieces = [targets[first : min(first + step, count)].contiguous() for first in range(0, count, step)]
    weights = [t for t in get_state_dict(head, tensor_type=Tensor).values() if t.is_floating_point()]

    @function(precompile=True, allow_implicit=True)
    def backward(
        seed: Tensor, sums: list[Tensor], rows: Tensor, targets: Tensor, head: Matrix, weights: list[Tensor]
    ) -> tuple[Tensor, ...]:
        grads = (summed(rows, targets, head, cap, operations) * seed).gradient(rows, *weights)
        return grads[0], *(s + g.cast(s.dtype) for s, g in zip(sums, grads[1:], strict=True))

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        args = call.src[1:]
        wanted = [w for w in weights if w.uop in args]
        sums = [Tensor.zeros(*w.shape, dtype=dtypes.float32, device=w.device) for w in wanted]
        found: dict[UOp, UOp] = {}
        for piece, labels in zip(row_pieces, target_pieces, strict=True):
            # the head may be the embedding table too: without the cut its gradient would run on through the layers
            part, *sums = backward(Tensor(seed), sums, piece.detach(), labels, head, wanted)
            found[piece.uop] = part.uop
        found |= {w.uop: s.cast(w.dtype).uop for w, s in zip(wanted, sums, strict=True)}
        return tuple(found.get(arg) for arg in args)

    @function(precompile=True, allow_implicit=True, grad_fxn=gradient)
    def whole(row_pieces: list[Tensor], target_pieces: list[Tensor], head: Matrix) -> Tensor:
        total = summed(row_pieces[0], target_pieces[0], head, cap, operations).contiguous()
        for piece, labels in zip(row_pieces[1:], target_pieces[1:], strict=True):
            # adds nothing, and makes a piece wait for the one before it, whose logits are free by then
            after = (total != total).where(total, 0.0).cast(piece.dtype)
            total = (total + summed(piece + after, labels, head, cap, operations)).contiguous()
        return total

    return whole(row_pieces, target_pieces, head)
