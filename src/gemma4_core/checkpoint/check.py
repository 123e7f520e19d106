"""Comparing what a checkpoint's headers hold with what its config calls for, before memory is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from gemma4_core.config import GemmaConfig, expected_text_tensors
from gemma4_core.contracts import TensorInfo
from gemma4_core.errors import FAULTS_SHOWN, CheckpointError
from gemma4_core.formatting import shown

WEIGHT_DTYPES = ("BF16", "F16", "F32")
FAULT_WIDTH = 110


def check_tensors(
    config: GemmaConfig,
    infos: Mapping[str, TensorInfo],
    extra_expected: Mapping[str, tuple[int, ...]],
    ignore: Callable[[str], bool],
    where: str = "checkpoint",
    dtypes: Collection[str] = WEIGHT_DTYPES,
) -> None:
    """Compare stored tensors with the text model's and ``extra_expected``.

    Args:
        config: the checkpoint's config.
        infos: stored tensors by full name.
        extra_expected: shapes of further tensors, such as those of the towers that will be loaded.
        ignore: whether a stored tensor that is not expected is allowed.
        where: what the error calls the checkpoint.
        dtypes: dtypes that an expected tensor may have, unless its format has quantised it.

    Raises:
        CheckpointError: counts missing, unexpected, misshapen and wrongly typed tensors and names the first few;
            ``faults`` has them all.
    """
    expected = expected_text_tensors(config) | dict(extra_expected)
    faults: dict[str, list[str]] = {"missing": [], "of another shape": [], "of another dtype": [], "unexpected": []}
    for name, shape in expected.items():
        info = infos.get(name)
        if info is None:
            faults["missing"].append(f"{shown(name)} {list(shape)} is missing")
        elif info.shape != tuple(shape):
            text = f"{shown(name)} is {list(info.shape)}, the config calls for {list(shape)}"
            faults["of another shape"].append(text)
        elif info.dtype not in dtypes and not info.quantized:
            faults["of another dtype"].append(f"{shown(name)} is {info.dtype}, not one of {', '.join(dtypes)}")
    for name in infos:
        if name not in expected and not ignore(name):
            faults["unexpected"].append(f"{shown(name)} is unexpected")
    if any(faults.values()):
        raise mismatch(faults, where)


def mismatch(faults: Mapping[str, list[str]], where: str) -> CheckpointError:
    """One line: how many of each kind, then the first few, taken from each kind in turn."""
    counts = ", ".join(f"{len(found)} {kind}" for kind, found in faults.items() if found)
    every = [fault for found in faults.values() for fault in found]
    firsts = [found[0] for found in faults.values() if found]
    picked = [*firsts, *(fault for fault in every if fault not in firsts)][:FAULTS_SHOWN]
    named = "; ".join(fault[:FAULT_WIDTH] for fault in picked)
    more = "; GEMMA4_DEBUG=1 lists all" if len(every) > len(picked) else ""
    return CheckpointError(f"{where}: tensors do not fit config.json ({counts}): {named}{more}", tuple(every))
