"""The speed of each operation of ``gemma4_core.ops``, in the shapes and with the weights of a loaded model.

An operation runs over all layers of one shape, so that no weight is still in a processor's cache when its turn comes
again. Times are of one call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, UOp

from gemma4_core.contracts.rows import Rows
from gemma4_core.engine.engine import Engine
from gemma4_core.engine.portable import numbers
from gemma4_core.engine.rows import greedy_rows
from gemma4_core.generation.loaded_model import LoadedModel
from gemma4_core.generation.sampling import Sampling
from gemma4_core.model import GemmaModel
from gemma4_core.model.decoder import Inputs
from gemma4_core.model.layers import DenseFeedForward, ExpertFeedForward, matrix, stack
from gemma4_core.model.spans import TokenSpan
from gemma4_core.ops import Operations, portable
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.multiply import made
from gemma4_core.ops.sampling import SamplingTensors
from gemma4_core.weights import Matrix
from gemma4_plugins.commands.bench.speed import prompt_ids
from gemma4_plugins.commands.bench.timing import median_seconds
from gemma4_plugins.commands.bench.traffic import cache_bytes, stored_bytes, weight_bytes

if TYPE_CHECKING:
    from gemma4_core.config import LayerConfig

SETTINGS = (
    "name", "prefill_chunk", "graph_chunk", "shared_chunk", "prefill_both_ways", "run_ahead", "kernels", "built_for",
    "towers", "fused", "cross_entropy", "least_tokens", "plain_below",
)
STEPS = ("decode_step", "prefill")
"""What ``Operations.step`` takes over: a token, and a chunk of a prompt."""
NAMES = tuple(name for field in dataclasses.fields(Operations) if field.name not in SETTINGS
              for name in (STEPS if field.name == "step" else (field.name,)))  # fmt: skip
"""The operations of the text model, including whole decode steps and chunks of a prompt; benchmarks/towers.py measures
towers, and benchmarks/*_training_ops.py what training takes besides products."""
TRAINED_ROWS = 128
PORTABLE_CHUNK = portable().prefill_chunk


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation in one shape."""

    operation: str
    shape: str
    nbytes: int
    """Bytes that one call reads."""
    count: int
    """Calls in a run."""
    own: Callable[[], Any] | None
    """Runs the device plugin's form; None where there is none."""
    plain: Callable[[], Any]
    """Runs the portable form."""
    plain_count: int = 0
    """Calls in a run of the portable form, where that differs."""


@dataclasses.dataclass(frozen=True)
class Line:
    """What was measured of a case; seconds are of one call."""

    operation: str
    shape: str
    nbytes: int
    seconds: float | None
    portable_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Bytes per second of the form in use."""
        return self.nbytes / (self.seconds or self.portable_seconds)


def measure(
    model: LoadedModel, names: Sequence[str] = NAMES, rows: int = 1, depth: int = 512,
    tell: Callable[[str], Any] = lambda text: None,
) -> Iterator[Line]:
    """Yield lines as they are measured, of ``rows`` positions at once after ``depth`` tokens of context."""
    for case in Cases(model, rows, depth).all(names):
        tell(f"{case.operation} {case.shape}")
        own = None if case.own is None else median_seconds(case.own, model.device) / case.count
        plain = median_seconds(case.plain, model.device) / (case.plain_count or case.count)
        yield Line(case.operation, case.shape, case.nbytes, own, plain)


class Cases:
    """Makes the cases of a model."""

    def __init__(self, model: LoadedModel, rows: int, depth: int) -> None:
        self.model, self.rows, self.depth = model, rows, depth
        self.text, self.plain_table = model.config.text_config, portable()
        self.random = np.random.default_rng(0)

    def all(self, names: Sequence[str]) -> Iterator[Case]:
        """The cases of these operations, in the order of ``Operations``."""
        for name in NAMES:
            if name in names:
                yield from getattr(self, f"of_{name}")()

    # ------------------------------------------------------------------------------------------- helpers

    def normal(self, *shape: int) -> Tensor:
        """Noise in the model's dtype."""
        return upload(self.random.standard_normal(shape, np.float32), self.model.device, self.model.dtype)

    def ids(self, values: np.ndarray) -> Tensor:
        """int32 on the device."""
        return upload(np.asarray(values, np.int32), self.model.device)

    def case(self, operation: str, shape: str, nbytes: int, runs: Sequence[tuple[Any, ...]]) -> Case:
        """A case that calls an operation with the arguments of each run, captured in one graph per form."""

        def graph(table: Operations) -> Callable[[], Any]:
            function = getattr(table, operation)

            def every() -> list[Tensor]:
                found = [function(*arguments) for arguments in runs]
                outputs = [t for one in found for t in (one if isinstance(one, tuple) else (one,))]
                outputs = [t.contiguous() for t in outputs]
                outputs[0].realize(*outputs[1:])
                return outputs

            return CapturedGraph(every)

        table = self.model.operations
        brought = getattr(table, operation) is not getattr(self.plain_table, operation)
        return Case(operation, shape, nbytes, len(runs), graph(table) if brought else None, graph(self.plain_table))

    # ------------------------------------------------------------------------------------------- products

    def of_linear(self) -> Iterator[Case]:
        """Matrices of the layers by shape."""
        found: dict[tuple[int, int], dict[str, list[Matrix]]] = {}
        for name, place in self.model.places.items():
            if isinstance(place.matrix, Matrix) and ".embed_tokens" not in name:
                role = name.removesuffix(".weight").split(".")[-1]
                found.setdefault(place.matrix.shape, {}).setdefault(role, []).append(place.matrix)
        for (out, inner), roles in found.items():
            matrices = [one for group in roles.values() for one in group]
            x = self.normal(1, self.rows, inner)
            shape = f"{self.rows} x {inner} to {out}: {', '.join(roles)}"
            yield self.case("linear", shape, stored_bytes(matrices[0]), [(x, one) for one in matrices])

    def of_gated_mlp(self) -> Iterator[Case]:
        """Dense feed-forward blocks by width."""
        found: dict[tuple[int, int], list[tuple[Matrix, Matrix, Matrix]]] = {}
        for layer in self.model.text.layers:
            ff: DenseFeedForward = layer.feed_forward
            triple = (matrix(ff.gate), matrix(ff.up), matrix(ff.down))
            found.setdefault(triple[0].shape, []).append(triple)
        for (width, hidden), triples in found.items():
            x = self.normal(1, self.rows, hidden)
            nbytes = sum(stored_bytes(one) for one in triples[0])
            shape = f"{self.rows} x {hidden}, width {width}"
            yield self.case("gated_mlp", shape, nbytes, [(x, *triple) for triple in triples])

    def of_experts(self) -> Iterator[Case]:
        """Mixtures of experts, where the model has them."""
        layers = [x.feed_forward for x in self.model.text.layers if isinstance(x.feed_forward, ExpertFeedForward)]
        if not layers:
            return
        count, top = self.text.num_experts, self.text.top_k_experts
        chosen = np.stack([self.random.permutation(count)[:top] for _ in range(self.rows)])
        x, ids = self.normal(self.rows, self.text.hidden_size), self.ids(chosen)
        share = Tensor.full((self.rows, top), 1 / top, device=self.model.device).contiguous().realize()
        pairs = [(stack(ff.gate_up), stack(ff.experts_down)) for ff in layers]
        nbytes = sum(map(stored_bytes, pairs[0])) * len(np.unique(chosen)) // count
        shape = f"{self.rows} x {self.text.hidden_size}, {top} of {count}"
        yield self.case("experts", shape, nbytes, [(x, ids, share, *pair) for pair in pairs])

    def of_matmul(self) -> Iterator[Case]:
        """The three products of training: forward, and the gradients of both operands."""
        out, inner = matrix(self.model.text.layers[0].feed_forward.gate).shape
        x, slope, weight = self.normal(TRAINED_ROWS, inner), self.normal(TRAINED_ROWS, out), self.normal(out, inner)
        own = self.model.operations.matmul
        for form, a, b in (("nt", x, weight), ("nn", slope, weight), ("tn", slope, x)):
            brought = own is not None and own(a, b, form, False) is not None
            graph = lambda kind, a=a, b=b, form=form: CapturedGraph(lambda: [made(kind, a, b, form).realize()])  # noqa: E731
            shape = f"{form} {list(a.shape)} {list(b.shape)}"
            nbytes = int(a.nbytes() + b.nbytes())
            yield Case("matmul", shape, nbytes, 1, graph(own) if brought else None, graph(None))

    def of_logits(self) -> Iterator[Case]:
        """The head."""
        h, head = self.normal(1, self.text.hidden_size), matrix(self.model.text.embedding)
        shape = f"1 x {self.text.hidden_size} to {head.shape[0]}"
        yield self.case("logits", shape, stored_bytes(head), [(h, head, self.text.final_logit_softcapping)])

    # ------------------------------------------------------------------------------------------- the rest

    def of_rms_norm(self) -> Iterator[Case]:
        """Normalisation of the residual stream."""
        streams = [self.normal(1, self.rows, self.text.hidden_size) for _ in self.text.layers]
        weight, eps = self.model.text.norm, self.text.rms_norm_eps
        shape, nbytes = f"{self.rows} x {self.text.hidden_size}", int(streams[0].nbytes() + weight.nbytes())
        yield self.case("rms_norm", shape, nbytes, [(x, weight, eps) for x in streams])

    def of_rope(self) -> Iterator[Case]:
        """Queries of sliding and full layers."""
        for kind, layers in self.kinds():
            head = layers[0].head_dim
            queries = [self.normal(1, self.rows, self.text.num_attention_heads, head) for _ in layers]
            cos, sin = self.normal(self.rows, head // 2), self.normal(self.rows, head // 2)
            shape = f"{self.rows} x {self.text.num_attention_heads} x {head}: {kind}"
            yield self.case("rope", shape, int(queries[0].nbytes()), [(q, cos, sin) for q in queries])

    def of_attention(self) -> Iterator[Case]:
        """Against keys and values of sliding and full layers."""
        for kind, layers in self.kinds():
            layer, heads = layers[0], self.text.num_attention_heads
            past = self.depth if layer.window is None else min(self.depth, layer.window - 1)
            shape = (1, layer.num_key_value_heads, past + self.rows, layer.head_dim)
            q, mask = self.normal(1, self.rows, heads, layer.head_dim), self.mask(past)
            held = [KeyValues(self.normal(*shape), self.normal(*shape), mask) for one in layers if not one.is_shared]
            what = f"{self.rows} x {heads} x {layer.head_dim}, {past + self.rows} keys of {shape[1]} heads: {kind}"
            nbytes = int(held[0].k.nbytes() + held[0].v.nbytes())
            yield self.case("attention", what, nbytes, [(q, kv) for kv in held])

    def mask(self, past: int) -> Tensor | None:
        """Causal for several rows, none for one, which sees every key."""
        if self.rows == 1:
            return None
        return upload(np.tri(self.rows, past + self.rows, past, dtype=np.bool_), self.model.device)

    def kinds(self) -> Iterator[tuple[str, list[LayerConfig]]]:
        """Sliding and full layers."""
        for kind, full in (("sliding", False), ("full", True)):
            if layers := [layer for layer in self.text.layers if layer.is_full is full]:
                yield kind, layers

    def of_sample(self) -> Iterator[Case]:
        """Greedy, and with top-k and top-p."""
        logits = Tensor(self.random.standard_normal((1, self.text.vocab_size), np.float32), device=self.model.device)
        logits = logits.contiguous().realize()
        params = Sampling(1.0, 64, 0.95).choices().params
        params, seed = (upload(x, self.model.device)
                        for x in (params[None], np.zeros(1, np.uint32)))
        drawn, position = SamplingTensors(params, seed), self.ids(np.array([7]))
        for kind, given in (("greedy", None), ("top-k 64, top-p 0.95", drawn)):
            shape, nbytes = f"{self.text.vocab_size}: {kind}", int(logits.nbytes())
            yield self.case("sample", shape, nbytes, [(logits, given, position)])

    # ------------------------------------------------------------------------------------------- whole steps

    def portable_engine(self) -> Engine:
        """An engine over the same weights that runs portable operations in buffers of its own."""
        m = self.model
        return Engine(GemmaModel(
            m.context, m.device, m.dtype, portable(), m.places, m.tensors, suppressed_ids=m.suppressed_ids,
            max_context=m.max_context, ple_host=m.ple_host,
        ))

    def running(self, engine: Engine, start: int, count: int) -> Callable[[], Any]:
        """Runs so many positions from ``start`` on, of which the last one chooses."""
        cache = engine.model.make_cache()
        slots, sampling = cache.reserve(engine.model, 1, start + count), greedy_rows(1)
        rows = Rows(np.array(prompt_ids(self.model, count), np.int32), np.zeros(count, np.int32),
                    np.arange(start, start + count, dtype=np.int32), np.array([count - 1], np.int32))

        def run(cache: Any = cache) -> Any:  # the slots are another's once the cache is gone
            return engine.run(slots, rows, sampling).read()

        return run

    def of_decode_step(self) -> Iterator[Case]:
        """A whole greedy decode step, from embedding to next token."""
        nbytes = weight_bytes(self.model) + cache_bytes(self.model, self.depth)
        own = self.running(self.model.engine, self.depth, 1) if self.has_own("decode") else None
        plain = self.running(self.portable_engine(), self.depth, 1)
        yield Case("decode_step", f"1 token after {self.depth}", nbytes, 1, own, plain)

    def of_layers(self) -> Iterator[Case]:
        """All layers of one token and the final norm."""
        text, layers = self.model.text, self.model.operations.layers
        cache = self.model.make_cache()
        storage = cache.reserve(self.model, 1, self.depth + 1)
        table = text.rotation_table(storage.capacity + self.model.chunk)
        ids, start = self.ids(np.array(prompt_ids(self.model, 1)).reshape(1, 1)), numbers(storage, 0, self.depth)[1]
        ple_rows = self.model.ple_host.rows(np.zeros((1, 1), np.int32)) if self.model.ple_host is not None else None

        def inputs() -> Inputs:
            return text.inputs(ids, text.embed(ids), self.plain_table, ple_rows)

        def plain(start: UOp) -> Tensor:
            span = TokenSpan(storage.layers, 0, start, self.model.device)
            return text.run(inputs(), span, table.rows(start, 1), self.plain_table).contiguous().realize()

        def own(start: UOp) -> Tensor | None:
            found = layers(text, inputs(), storage.layers, table, start) if layers is not None else None
            return None if found is None else found.contiguous().realize()

        head = stored_bytes(matrix(text.embedding))
        nbytes = weight_bytes(self.model) - head + cache_bytes(self.model, self.depth)
        served = own(start) is not None
        forms = [CapturedGraph(own), CapturedGraph(plain)]
        runs = [lambda graph=graph: graph(start) for graph in forms]
        yield Case("layers", f"1 token after {self.depth}", nbytes, 1, runs[0] if served else None, runs[1])

    def of_prefill(self) -> Iterator[Case]:
        """A chunk of a prompt, each form at the length that suits it; times are per position."""
        own_length, length = self.model.chunk, min(PORTABLE_CHUNK, self.model.chunk)
        own = self.running(self.model.engine, 0, own_length) if self.has_own("prefill") else None
        plain = self.running(self.portable_engine(), 0, length)
        nbytes, shape = weight_bytes(self.model) // own_length, f"1 of {own_length} positions (portable: of {length})"
        yield Case("prefill", shape, nbytes, own_length, own, plain, length)

    def has_own(self, what: str) -> bool:
        """Whether the device plugin runs whole steps (``decode``) or chunks (``prefill``) itself."""
        storage = self.model.make_cache().reserve(self.model, 1, self.depth + 1)
        return what in self.model.engine.device_steps(storage)
