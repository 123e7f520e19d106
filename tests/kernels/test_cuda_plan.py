"""Sizes and places of the CUDA decode kernel, and which models and devices it serves."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gemma4_core.config import parse_config, preset_dict
from gemma4_core.config.text import TextConfig
from gemma4_plugins.devices.cuda.kernels import chunk, operations, plan, sources

SIZES = ("E2B", "E4B", "26B-A4B", "31B")
HOPPER = plan.Machine(132, 232_448, moves_registers=True)
A100, ADA = plan.Machine(108, 166_912), plan.Machine(128, 101_376)


def text(name: str) -> TextConfig:
    return parse_config(preset_dict(name)).text_config


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("int8", [False, True])
def test_official_sizes_fit_hopper(name: str, int8: bool) -> None:
    config = text(name)
    assert plan.unsupported(config, int8) is None
    made = plan.make_plan(config, HOPPER, int8)
    assert made is not None and made.blocks == 132 and made.shared_bytes <= HOPPER.shared_bytes
    assert made.constants["STAGES"] >= 5 and made.constants["WEIGHT_BYTES"] == (1 if int8 else 2)


def test_stages_hold_rows_in_pieces_that_give_warps_equal_work() -> None:
    assert plan.stage_bytes(3072, 8, 1536) == plan.stage_bytes(1536, 8, 1536) == 16 * 1552
    assert plan.stage_bytes(5632, 8, 1536) == 16 * 1552  # three pieces, and one of 1024: as many steps for each warp
    assert plan.stage_bytes(5632, 8, 1500) == 16 * (1408 + 16)  # no room for that: four equal pieces
    assert plan.stage_bytes(128, 8, 1536) == plan.LEAST_STAGE
    large, small = (plan.make_plan(text("E2B"), machine) for machine in (HOPPER, ADA))
    assert large is not None and large.constants["STAGE_BYTES"] == 16 * 1552
    assert small is not None and small.constants["STAGE_BYTES"] == plan.LEAST_STAGE  # more of them


def test_smaller_devices_get_a_shorter_ring_or_none() -> None:
    for machine in (A100, ADA):
        made = plan.make_plan(text("E2B"), machine)
        assert made is not None and made.shared_bytes <= machine.shared_bytes
        assert plan.LEAST_STAGES <= made.constants["STAGES"] < plan.MOST_STAGES
    assert plan.make_plan(text("31B"), ADA) is None
    assert plan.make_plan(text("31B"), plan.Machine(8, 232_448)) is None  # fewer blocks than key heads


def test_only_groups_of_four_warps_move_registers() -> None:
    plans = [plan.make_plan(text("E2B"), replace(HOPPER, producers=n), int8) for n in (4, 2) for int8 in (False, True)]
    moving, joined = zip(*((p.constants["MOVES_REGISTERS"], p.constants["JOINED"]) for p in plans if p), strict=True)
    assert moving == (1, 1, 0, 0) and joined == (8, 4, 4, 4)


def test_layers_of_a_kind_share_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(info & plan.IS_FULL, info & plan.IS_OWN, ff) for info, ff in plan.kinds(text("E2B"))] == [
        (0, 2, 6144), (1, 2, 6144), (0, 0, 12288), (1, 0, 12288)
    ]  # fmt: skip
    monkeypatch.setattr(plan, "MOST_KINDS", 3)
    assert plan.unsupported(text("E2B")) == "4 kinds of layers" and plan.unsupported(text("31B")) is None


@pytest.mark.parametrize("name", SIZES)
def test_places_do_not_overlap(name: str) -> None:
    made = plan.make_plan(text(name), HOPPER)
    assert made is not None
    for prefix, align, total in (("S_", 128, made.shared_bytes), ("AT_", 16, made.scratch_packets)):
        places = [v for k, v in made.constants.items() if k.startswith(prefix)]
        assert places == sorted(places) and all(v % align == 0 for v in places) and places[-1] <= total
    ring = made.constants["STAGES"] * made.constants["STAGE_BYTES"]
    assert made.constants["S_OPERAND"] >= ring
    assert made.constants["S_STREAM"] + 4 * text(name).hidden_size <= made.constants["S_NORM_0"]


@pytest.mark.parametrize("name", ["E2B", "26B-A4B"])
def test_sources_find_every_constant(name: str) -> None:
    made = plan.make_plan(text(name), HOPPER, timers=True)
    assert made is not None
    body = sources.step_source(made)
    used = set(re.findall(r"\b(?:AT|S)_[A-Z0-9_]+\b", re.sub(r"//.*", "", body)))
    assert used - {"S_NORM_1"} <= set(made.constants)
    assert body.count('extern "C"') == 0 and "KERNEL(THREADS) decode_step(" in body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 1550}, "hidden_size 1550"),
        ({"hidden_size_per_layer_input": 512}, "hidden_size_per_layer_input 512"),
    ],
)
def test_odd_sizes_are_left_to_the_portable_form(change: dict[str, int], reason: str) -> None:
    assert plan.unsupported(replace(text("E2B"), **change)) == reason


def test_int8_asks_for_wider_steps() -> None:
    odd = replace(text("31B"), hidden_size=5408)
    assert plan.unsupported(odd) is None and plan.unsupported(odd, int8=True) == "hidden_size 5408"


def test_queries_of_one_key_head_are_split_evenly_or_refused() -> None:
    assert plan.unsupported(replace(text("31B"), num_attention_heads=48)) is None  # 12 to a key head: two groups of 6
    assert plan.unsupported(replace(text("E2B"), num_attention_heads=9)) == "9 query heads to a key head"


def test_chunk_kernels_need_a_large_device_for_wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = {"MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": HOPPER.shared_bytes}
    monkeypatch.setattr(chunk.launch, "attribute", limit.__getitem__)
    assert all(chunk.fits(text(name)) for name in SIZES)
    limit["MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"] = ADA.shared_bytes
    assert not chunk.fits(text("E2B"))


def test_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    served = operations()
    assert served.name == "cuda" and served.step is not None and served.run_ahead > 0
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    plain = operations()
    assert plain.name == "portable" and plain.step is None and plain.run_ahead == 0
