"""The persistent step's constants for one model and one device: sizes, places in scratch and shared memory.

The kernel's source knows names only; whoever runs it (the driver, or the host emulation of the tests) gets the numbers
from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import dtypes

from gemma4_core.config import LayerConfig, TextConfig
from gemma4_core.model.decoder import rounded

PIECES: tuple[int, ...] = (1536, 1024)
"""Bytes of a row at most in one stage of the ring, the first that leaves enough stages. A copy takes some 55 cycles of its
multiprocessor whatever its size, in which memory brings 1 KB."""
LEAST_STAGE = 16896
"""Bytes that a stage has at least: 16 rows of 512 bf16, 32 keys of 256, or 16 keys of 512, each row 16 bytes longer."""
MOST_STAGES, ENOUGH_STAGES, LEAST_STAGES = 12, 5, 3
SPAN = 256
"""Positions whose scores are held in shared memory at a time."""
FLIGHT, WIDE_FLIGHT, WIDE = 50688, 84480, 4096
"""Bytes on their way from memory at a time: what bandwidth times latency asks for, and little more. More of them from a
``hidden_size`` on: such layers stream for longer between two results that others wait for."""
JOINED, JOINED_WIDELY = 4, 8
"""Slices of cached positions at most that every block puts together for itself, a power of two or 0: one hop between
blocks less than sharing that out, for more to read. More of them where registers hold all that is asked for at once and
bf16 weights leave the time."""
JOINED_PIECES = 4
"""Stages of keys that such a slice has at most."""
GROUP_TILES = 4
"""Tiles of 16 rows between two reductions over warps."""
PHASES = 11
"""Results that travel per layer, as the kernel's ``Phase`` counts them."""
HISTORY = 64
"""Slots of the list of chosen tokens in host memory; a power of two."""
PACKET_BYTES = 8
FIELDS = 32
"""Fields of 8 bytes in a row of the table of addresses."""
IS_FULL, IS_OWN, KEY_IS_VALUE, KIND = 1, 2, 4, 256
"""What the kernel is told of a layer, see :func:`layer_info`; a kind is counted in units of the last."""
MOST_KINDS = 16
"""Kinds of layers that a model may have."""
PRODUCTS, SHAPE_BYTES, SLICE_BYTES, STEP = 11, 32, 48, 64
"""Products of the kernel's ``Product``, bytes of its ``Shape`` and ``Slice``, and bytes of a row that a warp multiplies in a step."""


@dataclass(frozen=True)
class Machine:
    """What the plan needs of a device."""

    blocks: int
    """Multiprocessors: one block each."""
    shared_bytes: int
    """Most dynamic shared memory of a block."""
    warps: int = 8
    """Multiplying warps of a block, a power of two."""
    producers: int = 4
    """Copying warps of a block: one starts a copy of a row in some 60 cycles, memory brings 1 KB in fewer."""
    moves_registers: bool = False
    """Whether copying warps can give registers to multiplying ones."""


@dataclass(frozen=True)
class Plan:
    """A compiled form of the kernel: the constants of its source, and the memory that it needs."""

    constants: dict[str, int | float]
    scratch_packets: int
    shared_bytes: int

    @property
    def blocks(self) -> int:
        return int(self.constants["GRID"])

    @property
    def threads(self) -> int:
        return (int(self.constants["WARPS"]) + int(self.constants["PRODUCERS"])) * 32

    @property
    def tags(self) -> int:
        """Tags that one launch uses up."""
        return 2 + int(self.constants["LAYERS"]) * PHASES


def unsupported(text: TextConfig, int8: bool = False) -> str | None:
    """Why a model's sizes do not suit the kernel, None where they do. Rows come in steps of 64 bytes."""
    step = 64 if int8 else 32
    sizes = {
        "hidden_size": (text.hidden_size, step), "vocab_size": (text.vocab_size, 1),
        "hidden_size_per_layer_input": (text.hidden_size_per_layer_input, step),
        "moe_intermediate_size": (text.moe_intermediate_size or 0, step), "num_experts": (text.num_experts or 0, 2),
    }  # fmt: skip
    for layer in text.layers:
        sizes |= {"head_dim": (layer.head_dim, 128), "intermediate_size": (layer.intermediate_size, step)}
        odd = next((f"{name} {size}" for name, (size, multiple) in sizes.items() if size % multiple), None)
        if odd is not None:
            return odd
        if layer.head_dim > 512:
            return f"head_dim {layer.head_dim}"
        group = text.num_attention_heads // layer.num_key_value_heads
        if group % -(-group // 8):
            return f"{group} query heads to a key head"
    if len(kinds(text)) > MOST_KINDS:
        return f"{len(kinds(text))} kinds of layers"
    if text.hidden_size_per_layer_input > 256:
        return f"hidden_size_per_layer_input {text.hidden_size_per_layer_input}"
    if text.enable_moe_block and (text.num_experts > 512 or not 1 <= text.top_k_experts <= 15):
        return f"{text.top_k_experts} of {text.num_experts} experts"
    return None


def layer_info(layer: LayerConfig) -> int:
    """What distinguishes a layer's work but for its feed-forward width."""
    return IS_FULL * layer.is_full | IS_OWN * (not layer.is_shared) | KEY_IS_VALUE * layer.k_eq_v


def kinds(text: TextConfig) -> list[tuple[int, int]]:
    """The kinds of layers, which differ in their weights alone: :func:`layer_info` and ``intermediate_size``."""
    return list(dict.fromkeys((layer_info(layer), layer.intermediate_size) for layer in text.layers))


def of_kind(text: TextConfig, full: bool) -> LayerConfig:
    """A layer of a kind; of the other kind where there is none, whose numbers are then unused."""
    return next((layer for layer in text.layers if layer.is_full is full), text.layers[0])


def make_plan(text: TextConfig, machine: Machine, int8: bool = False, timers: bool = False) -> Plan | None:
    """The plan for bf16 or int8 weights and a bf16 cache, or None where the device is too small for the model.

    With ``timers`` the kernel also leaves the cycles of each part of a step in scratch memory.
    """
    sliding, full = of_kind(text, False), of_kind(text, True)
    # every block must have a share of the products that all others wait for
    blocks = min(machine.blocks, text.hidden_size)
    if blocks < max(items(text, sliding), items(text, full)):
        return None
    # groups of four warps move theirs together
    moving = machine.moves_registers and machine.warps % 4 == machine.producers % 4 == 0
    constants = model_constants(text) | {
        "GRID": blocks, "WARPS": machine.warps, "PRODUCERS": machine.producers,
        "FLIGHT": WIDE_FLIGHT if text.hidden_size >= WIDE else FLIGHT, "SPAN": SPAN, "GROUP_TILES": GROUP_TILES, "JOINED_PIECES": JOINED_PIECES, "HISTORY": HISTORY,
        "JOINED": JOINED_WIDELY if moving and not int8 else JOINED, "MOVES_REGISTERS": int(moving),
        "WEIGHT_BYTES": 1 if int8 else 2, "KINDS": len(kinds(text)),
        **({"TIMERS": 1} if timers else {}),
    }  # fmt: skip
    packets = scratch(constants)
    room = machine.shared_bytes - shared(constants | {"STAGES": 0, "STAGE_BYTES": 0})["SHARED_BYTES"]
    constants |= ring(text.hidden_size * int(constants["WEIGHT_BYTES"]), machine.warps, room)
    if constants["STAGES"] < LEAST_STAGES:
        return None
    places = shared(constants)
    total = places.pop("SHARED_BYTES")
    size = packets.pop("SCRATCH_PACKETS")
    return Plan(constants | packets | places, size, total)


def ring(row: int, warps: int, room: int) -> dict[str, int]:
    """Stages for rows of ``row`` bytes that fit into shared memory, each with two barriers, and a stage's bytes."""
    for most in PIECES:
        size = stage_bytes(row, warps, most)
        count = min(room // (size + 16), MOST_STAGES)
        if count >= ENOUGH_STAGES:
            break
    return {"STAGES": count, "STAGE_BYTES": size}


def stage_bytes(row: int, warps: int, most: int) -> int:
    """Bytes of a stage for 16 rows of ``row`` bytes in pieces of at most ``most``, as the kernel cuts them."""
    piece = -(-row // -(-row // most) // STEP) * STEP
    even = -(-piece // (warps * STEP)) * warps * STEP  # every warp has as many steps
    return max(16 * ((even if even <= most else piece) + 16), LEAST_STAGE)


def model_constants(text: TextConfig) -> dict[str, int | float]:
    """Sizes and numbers of a model, by the names that kernel sources know them by."""
    sliding, full = of_kind(text, False), of_kind(text, True)
    experts, per_layer = text.enable_moe_block, text.hidden_size_per_layer_input or 0
    return {
        "HIDDEN": text.hidden_size, "LAYERS": text.num_hidden_layers, "HEADS": text.num_attention_heads,
        "VOCAB": text.vocab_size, "PLE": per_layer, "EXPERTS": text.num_experts if experts else 0,
        "TOP": text.top_k_experts if experts else 0, "EXPERT_FF": text.moe_intermediate_size if experts else 0,
        "KV_SLIDING": sliding.num_key_value_heads, "KV_FULL": full.num_key_value_heads,
        "D_SLIDING": sliding.head_dim, "D_FULL": full.head_dim, "FF_MAX": max(x.intermediate_size for x in text.layers),
        "WINDOW": sliding.window or 1, "EPS": float(text.rms_norm_eps),
        "SOFTCAP": float(text.final_logit_softcapping or 0.0),
        "EMBED_SCALE": rounded(text.hidden_size**0.5, dtypes.bfloat16),
        "PLE_SCALE": rounded(per_layer**0.5, dtypes.bfloat16),
    }  # fmt: skip


def items(text: TextConfig, layer: LayerConfig) -> int:
    """Groups of at most 8 query heads with one key head: what attention is split into before positions."""
    group = text.num_attention_heads // layer.num_key_value_heads
    return layer.num_key_value_heads * -(-group // 8)


def running(sizes: dict[str, int], align: int, last: str) -> dict[str, int]:
    """Offsets of consecutive parts, each aligned; under ``last`` the total."""
    places, at = {}, 0
    for name, size in sizes.items():
        places[name] = at
        at = -(-(at + size) // align) * align
    return places | {last: at}


def scratch(c: dict[str, int | float]) -> dict[str, int]:
    """Places in scratch memory, in packets: one result each, or two of bf16."""
    k = {name: int(value) for name, value in c.items()}
    widest = max(k["D_SLIDING"], k["D_FULL"])
    width = k["HEADS"] * widest
    keys = max(k["KV_SLIDING"] * k["D_SLIDING"], k["KV_FULL"] * k["D_FULL"])
    sizes = {
        "AT_QKV": width + 2 * keys, "AT_MIXED": width // 2, "AT_O": k["HIDDEN"], "AT_GATED": k["FF_MAX"] // 2,
        "AT_DOWN": k["HIDDEN"], "AT_PLE_GATE": k["PLE"], "AT_PLE": k["HIDDEN"] if k["PLE"] else 0,
        "AT_CONTEXT": k["LAYERS"] * k["PLE"], "AT_ROUTER": k["EXPERTS"], "AT_EXPERT": k["TOP"] * k["EXPERT_FF"] // 2,
        "AT_EXPERT_DOWN": k["HIDDEN"] if k["EXPERTS"] else 0, "AT_STAT": k["GRID"] * 16, "AT_BEST": k["GRID"] * 3,
        "AT_PART": k["GRID"] * 8 * (widest // 2), "AT_TIMERS": k["GRID"] * 20 if "TIMERS" in k else 0,
    }  # fmt: skip
    return running(sizes, 16, "SCRATCH_PACKETS")


def shared(c: dict[str, int | float]) -> dict[str, int]:
    """Places in shared memory, in bytes."""
    k = {name: int(value) for name, value in c.items()}
    widest = max(k["D_SLIDING"], k["D_FULL"])
    row = k["HIDDEN"] * 2
    query_stride, probability_stride = widest * 2 + 64, SPAN * 2 + 64
    attention = 8 * query_stride + 8 * (SPAN + 4) * 4 + 8 * probability_stride + 4 * 32
    vectors = (k["HIDDEN"], k["HEADS"] * widest, k["FF_MAX"], k["TOP"] * k["EXPERT_FF"])
    sizes = {
        "S_RING": k["STAGES"] * k["STAGE_BYTES"], "S_OPERAND": max(*(2 * n for n in vectors), attention),
        "S_ROUTER": row if k["EXPERTS"] else 0, "S_EXPERTS": row if k["EXPERTS"] else 0, "S_STREAM": 2 * row,
        **{f"S_NORM_{i}": row for i in range(4 if k["EXPERTS"] else 2)},
        "S_PARTS": 2 * GROUP_TILES * k["WARPS"] * 64, "S_NEW": 4 * (k["D_SLIDING"] + k["D_FULL"]), "S_SUMS": 4 * k["WARPS"] * 16,
        "S_SHARES": k["HEADS"] * k["JOINED"] * 4, "S_CHOSEN": 128, "S_SHAPES": k["KINDS"] * PRODUCTS * SHAPE_BYTES, "S_SLICES": 2 * SLICE_BYTES,
        "S_HEAD_NORMS": 4 * widest, "S_ROTATION": 2 * (k["D_SLIDING"] + k["D_FULL"]), "S_TIMERS": 160 if "TIMERS" in k else 0, "S_BARRIERS": (2 * k["STAGES"] + 1) * 8,
    }  # fmt: skip
    places = running(sizes, 128, "SHARED_BYTES")
    return places | {"QUERY_STRIDE": query_stride, "PROBABILITY_STRIDE": probability_stride, "NORM_BYTES": -(-row // 128) * 128}
