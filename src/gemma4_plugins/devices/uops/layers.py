"""All layers of a token as hand-written kernels: at most eight per layer.

Queries, keys and values; attention by slices; combining the slices; output; gate and up; down; and with per-layer
inputs their gate and projection. With experts: router, gate and up of the dense branch, gate and up of the chosen
experts, down of both. The operations between two products (norms, additions, rotation, the cache's new entry) are part
of the kernel that needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinygrad import Tensor, UOp, dtypes

from gemma4_core.model.decoder import Inputs, TextDecoder
from gemma4_core.model.layers import DecoderLayer, DenseFeedForward, ExpertFeedForward, Rotation
from gemma4_core.weights import Weight
from gemma4_plugins.devices.uops.attention import Heads, attend, combine_slices, slices_of
from gemma4_plugins.devices.uops.experts import Choice
from gemma4_plugins.devices.uops.product import (
    THREADS,
    Layout,
    Product,
    RowLayout,
    Rows,
    StackedRows,
    Stored,
    plain_product,
    stored_rows,
)
from gemma4_plugins.devices.uops.stream import Operand, Stream, Vector
from gemma4_plugins.devices.uops.writing import DoesNotFit, Kernel


def token_layers(
    text: TextDecoder, inputs: Inputs, storage: Sequence[Tensor | None], rotation: Rotation, start: UOp
) -> Tensor | None:
    """The final hidden state ``[1, 1, H]`` of one token; None if the kernels do not support the model.

    Args:
        inputs: those of one position of one row.
        storage: the cache's buffers, into which the position's keys and values are written.
        rotation: the tables of all positions.
        start: the position, a bound variable.
    """
    if inputs.h.shape[:2] != (1, 1) or not served(text, storage):
        return None
    ple = None if inputs.ple is None else inputs.ple.flatten().cast(dtypes.float32).contiguous()
    token = Token(text, list(storage), rotation, start, ple)
    stream = Stream(inputs.h.flatten().cast(dtypes.float32).contiguous())
    try:
        for layer in text.layers:
            stream = token.layer(layer, stream)
        hidden = token.final_norm(stream)
    except DoesNotFit:
        return None
    return hidden.reshape(1, 1, -1).cast(text.dtype)  # [H] -> [1, 1, H]


# ---- which models are supported


def served(text: TextDecoder, storage: Sequence[Tensor | None]) -> bool:
    """Whether the kernels read all of the model in place: one slot, whole words, weights of known kinds, those of one
    kernel of the same kind."""
    caches = [cache for cache in storage if cache is not None]
    if any(int(cache.shape[0]) != 1 or cache.dtype not in (dtypes.bfloat16, dtypes.float32) for cache in caches):
        return False
    sizes = all(layer.config.head_dim % 4 == 0 for layer in text.layers)
    return sizes and all(kind(weights) is not None for layer in text.layers for weights in together(layer))


def kind(weights: Sequence[Weight]) -> tuple[str, int] | None:
    """How weights are packed and how long their rows are; None if that is unknown or if they differ."""
    found = [stored_rows(weight.matrix) for weight in weights]
    kinds = {(rows.packing.name, rows.columns) if rows is not None else None for rows in found}
    return kinds.pop() if len(kinds) == 1 else None


def together(layer: DecoderLayer) -> Iterator[list[Weight]]:
    """The weights of a layer, grouped by kernel."""
    a, f = layer.attention, layer.feed_forward
    yield projections(layer)
    yield [a.o_proj]
    yield [f.gate, f.up]
    yield [f.down]
    if layer.per_layer is not None:
        yield [layer.per_layer.gate]
        yield [layer.per_layer.projection]
    if isinstance(f, ExpertFeedForward):
        yield from ([f.router], [f.gate_up], [f.experts_down])


def projections(layer: DecoderLayer) -> list[Weight]:
    """Queries, and also keys and values if the layer has its own."""
    a = layer.attention
    if layer.config.is_shared:
        return [a.q_proj]
    return [a.q_proj, a.k_proj] if a.v_proj is None else [a.q_proj, a.k_proj, a.v_proj]


def known(weight: Weight) -> Stored:
    """The rows of a weight that ``served`` has accepted."""
    rows = stored_rows(weight.matrix)
    assert rows is not None
    return rows


# ---- the kernels


def gelu_tanh(x: UOp) -> UOp:
    """The tanh approximation of GELU, as ``x * sigmoid(2 y)``."""
    y = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + (y * -2.0).exp())


@dataclass
class Token:
    """The kernels of one token, layer by layer."""

    text: TextDecoder
    storage: list[Tensor | None]
    rotation: Rotation
    start: UOp
    ple: Tensor | None
    """fp32 ``[layers * P]``."""

    def __post_init__(self) -> None:
        self.eps = self.text.config.rms_norm_eps
        self.device = str(self.text.device)

    def empty(self, size: int) -> Tensor:
        """Uninitialised memory for a result."""
        return Tensor.empty(size, dtype=dtypes.float32, device=self.device)

    def layer(self, layer: DecoderLayer, stream: Stream) -> Stream:
        """A layer's kernels, from the stream before it to the stream after it."""
        mixed, h = self.attention(layer, stream)
        stream = Stream(h, [(self.product(mixed, layer.attention.o_proj), layer.after)])
        f = layer.feed_forward
        stream = self.experts(f, stream) if isinstance(f, ExpertFeedForward) else self.dense(f, stream)
        if layer.per_layer is not None and self.ple is not None:
            stream = self.per_layer(layer, stream, self.ple)
        return Stream(stream.h, stream.results, stream.after, layer.scalar)

    def attention(self, layer: DecoderLayer, stream: Stream) -> tuple[Tensor, Tensor]:
        """The result of attention in the layout of the output projection's operand; and the new stream."""
        a, config = layer.attention, layer.config
        raw, h = self.of_stream(stream, layer.before, [known(weight) for weight in projections(layer)])
        place = config.index if config.donor is None else config.donor
        cache = self.storage[place]
        assert cache is not None
        cut = slices_of(config, a.heads, cache)
        heads = Heads(raw, a.q_norm, None if config.is_shared else a.k_norm, *self.rotation.of(config))
        parts, self.storage[place] = attend(cut, heads, cache, self.start, self.eps)
        return combine_slices(cut, parts, self.start, known(a.o_proj).layout), h

    def dense(self, f: DenseFeedForward, stream: Stream) -> Stream:
        """The gated MLP."""
        hidden, h = self.gated(stream, f.before, known(f.gate), known(f.up), known(f.down).layout)
        return Stream(h, [(self.product(hidden, f.down), f.after)])

    def per_layer(self, layer: DecoderLayer, stream: Stream, ple: Tensor) -> Stream:
        """The per-layer input, gated by the stream."""
        p = layer.per_layer
        assert p is not None
        gate, projection = known(p.gate), known(p.projection)
        cut = RowLayout.of(gate.rows, gate.words // gate.vector)
        k = self.kernel("per_layer_gate", cut, gate, stream, projection.layout)
        operand = Operand(k, stream, None, self.eps, gate.layout)
        inputs, number = k.read(ple), k.read(self.text.layer_numbers[layer.config.index])[UOp.const(0)]
        out = k.write(self.empty(gate.rows))
        row, mine, (total,) = Product(k, cut).sums([Rows(k, gate)], operand.numbers)
        value = gelu_tanh(total) * inputs[number * gate.rows + row]
        h, gated = written(k.run(out[projection.layout.place(row).valid(mine)].store(value)), operand)
        return Stream(h, [(self.product(gated, p.projection), p.after)])

    def experts(self, f: ExpertFeedForward, stream: Stream) -> Stream:
        """The router first, which also computes the new stream; then both branches."""
        logits, h = self.of_stream(stream, f.router_scale, [known(f.router)], factor=stream.size**-0.5)
        stream = Stream(h)
        hidden, _ = self.gated(stream, f.before, known(f.gate), known(f.up), known(f.down).layout)
        gate_up, down = known(f.gate_up), known(f.experts_down)
        inner = down.columns
        cut = RowLayout.of(f.count * inner, gate_up.words // gate_up.vector, 2)
        k = self.kernel(f"experts_{f.count}_{inner}", cut, gate_up, stream, down.layout)
        operand = Operand(k, stream, f.experts_before, self.eps, gate_up.layout)
        choice = Choice(k, logits, f.count)
        # an expert's rows in a stack: gate's, then up's
        gates = Rows(k, gate_up, lambda row: choice.expert(row // inner) * (2 * inner) + row % inner)
        ups = gates.moved(lambda row: gates.at(row) + inner)
        out = k.write(self.empty(f.count * inner))
        row, mine, (gate, up) = Product(k, cut).sums([gates, ups], operand.numbers)
        at = row // inner * inner + down.layout.place(row % inner)
        mixed = k.run(out[at.valid(mine)].store(gelu_tanh(gate) * up))[0]
        return self.both_down(f, h, logits, hidden, mixed)

    def both_down(self, f: ExpertFeedForward, h: Tensor, logits: Tensor, hidden: Tensor, mixed: Tensor) -> Stream:
        """Down of the dense branch and of the chosen experts, whose results have norms of their own."""
        dense, down = known(f.down), known(f.experts_down)
        size, inner = dense.rows, down.columns
        cut = RowLayout.of(size, dense.words // dense.vector)
        name = f"layer_both_down_{dense.packing.name}_{size}_{dense.columns}_{inner}_{f.count}"
        k = Kernel(name, cut.groups, cut.threads)
        choice = Choice(k, logits, f.count)
        shares = choice.shares(Vector(k, f.expert_scale))
        first, second = k.read(hidden), k.read(mixed)
        rows, stack = Rows(k, dense), Rows(k, down)
        outs = [k.write(self.empty(size)) for _ in range(2)]
        product = Product(k, cut)
        (plain,) = product.partial([rows], lambda chunk: dense.layout.numbers(first, chunk))

        def of_expert(e: UOp) -> list[UOp]:
            """This thread's part of each row, weighted."""
            chosen = stack.moved(lambda row: choice.expert(e) * size + row)
            first_number = e * inner  # of the expert's part of the gated activations
            (part,) = product.partial([chosen], lambda chunk: down.layout.numbers(second, chunk, first_number))
            scales = [chosen.scale(own) for own in product.rows]
            return [v * shares[e] if s is None else v * (shares[e] * s) for v, s in zip(part, scales, strict=True)]

        row, mine, (alone, sums) = product.finished([plain, k.sum_over(f.count, of_expert)])
        scale = rows.scale(row)
        values = [alone if scale is None else alone * scale, sums]
        results = k.run(*(out[row.valid(mine)].store(value) for out, value in zip(outs, values, strict=True)))
        return Stream(h, [(results[0], f.dense_after), (results[1], f.experts_after)], f.after)

    def final_norm(self, stream: Stream) -> Tensor:
        """The last addition and norm, fp32 ``[H]``."""
        k = Kernel(f"final_{stream.size}_{len(stream.results)}", 1, THREADS)
        operand = Operand(k, stream, self.text.norm, self.eps, Layout(stream.size, 1))
        out = k.write(self.empty(stream.size))
        return k.run(k.spread(stream.size, lambda i, mine: [out[i.valid(mine)].store(operand.memory[i])]))[-1]

    # ------------------------------------------------------------------------------------------- products

    def kernel(
        self, what: str, cut: RowLayout, weights: Stored, stream: Stream, reader: Layout | None = None
    ) -> Kernel:
        """A kernel whose name contains everything that its code depends on."""
        marks = [weights.packing.name, cut.count, weights.columns, len(stream.results), int(stream.scalar is not None)]
        marks += [reader.vector] if reader is not None else []
        return Kernel("_".join(("layer", what, *map(str, marks))), cut.groups, cut.threads)

    def of_stream(
        self, stream: Stream, norm: Tensor, matrices: Sequence[Stored], factor: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Products of the normalised stream with stacked matrices, fp32; and the new stream."""
        shape = matrices[0]
        cut = RowLayout.of(sum(m.rows for m in matrices), shape.words // shape.vector)
        k = self.kernel(f"stream_{len(matrices)}", cut, shape, stream)
        operand = Operand(k, stream, norm, self.eps, shape.layout, factor)
        source = StackedRows(k, matrices) if len(matrices) > 1 else Rows(k, shape)
        out = k.write(self.empty(cut.count))
        row, mine, (total,) = Product(k, cut).sums([source], operand.numbers)
        h, result = written(k.run(out[row.valid(mine)].store(total)), operand)
        return result, h

    def gated(self, stream: Stream, norm: Tensor, gate: Stored, up: Stored, reader: Layout) -> tuple[Tensor, Tensor]:
        """``gelu(gate) * up`` of the normalised stream, in the layout of the next operand; and the new stream."""
        cut = RowLayout.of(gate.rows, gate.words // gate.vector, 2)
        k = self.kernel("gated", cut, gate, stream, reader)
        operand = Operand(k, stream, norm, self.eps, gate.layout)
        sources = [Rows(k, gate), Rows(k, up)]
        out = k.write(self.empty(gate.rows))
        row, mine, (a, b) = Product(k, cut).sums(sources, operand.numbers)
        h, hidden = written(k.run(out[reader.place(row).valid(mine)].store(gelu_tanh(a) * b)), operand)
        return hidden, h

    def product(self, operand: Tensor, weight: Weight) -> Tensor:
        """``matrix @ operand`` in fp32; the operand is in the matrix's layout."""
        return plain_product(operand, known(weight), "layer_product")


def written(tensors: list[Tensor], operand: Operand) -> tuple[Tensor, Tensor]:
    """The new stream, or the old one if the kernel did not write it, and the kernel's result."""
    return (tensors[0], tensors[1]) if len(tensors) > 1 else (operand.stream, tensors[0])
