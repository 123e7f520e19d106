"""Checkpoints by name: a folder, or a model of the Hugging Face cache. huggingface_hub is imported when needed."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from gemma4_core.checkpoint.adapted import refuse_adapter
from gemma4_core.checkpoint.contents import ADAPTER, CONFIG, SIDE_FILES
from gemma4_core.checkpoint.folder_headers import INDEX_FILE, SINGLE_FILE
from gemma4_core.checkpoint.snapshots import HUB_NAME, cached_snapshot
from gemma4_core.config.models import MODELS, TUNED
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.plugins.origin import nearest

REPOSITORIES = {name.lower(): model.hub_name for name, model in MODELS.items() if model.hub_name is not None}
"""Hub name of the base checkpoint by size; the instruction-tuned one ends in ``-it``."""
DEMO = "demo"
"""Name of the trained model inside the package."""
FILES = (*sorted(SIDE_FILES), CONFIG, "*.safetensors", "*.safetensors.index.json")
NETWORK_MODULES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet")
LOCAL_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
LAST = "last"
"""The link to the newest checkpoint in the folder of a training run."""


def repository(name: str) -> str | None:
    """Hub name for an alias (``e2b``, ``E2B-it``, ``gemma-4-e2b-it``) or a name with its owner; None for others."""
    short = name.lower().removeprefix("google/").removeprefix("gemma-4-")
    size = short.removesuffix(TUNED)
    if size in REPOSITORIES:
        return REPOSITORIES[size] + (TUNED if short.endswith(TUNED) else "")
    return name if HUB_NAME.fullmatch(name) and ".." not in name else None


def shown_name(folder: Path) -> str:
    """What to call a checkpoint in text for people: ``demo``, its hub name, or its folder as it was given."""
    if folder == packaged_demo():
        return DEMO
    for part in folder.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return str(folder)


def packaged_demo() -> Path:
    """The folder of the trained demo model inside the package."""
    return Path(str(files("gemma4_core") / "data" / DEMO))


def resolve_folder(name: str | Path) -> Path:
    """Path of a checkpoint: a folder or a single file by its path, or a hub name or alias found in the Hugging Face
    cache. For the folder of a training run it is the last checkpoint.

    Nothing is fetched. Raises CheckpointError naming the value and how to get the checkpoint, or for an adapter what
    else to give.
    """
    text = str(name)
    try:
        if text and Path(text).exists():
            last = Path(text, LAST)
            folder = last if not Path(text, "config.json").exists() and (last / "config.json").is_file() else Path(text)
            if not any((folder / file).exists() for file in (SINGLE_FILE, INDEX_FILE)):
                refuse_adapter(folder)
            return folder
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise CheckpointError(f"{shown_path(text)} cannot be opened as a checkpoint folder: {reason}") from fault
    if text.lower() == DEMO:
        return packaged_demo()
    hub_name = repository(text)
    aliases = ", ".join(REPOSITORIES)
    if hub_name is None:
        close = nearest(text, known_names())
        hint = f"give a checkpoint folder, a hub name, {DEMO}, or one of {aliases} (with -it for tuned ones)"
        raise CheckpointError(f"{shown(text, 160)} does not exist{close or ';'} {hint}")
    cached = cached_snapshot(hub_name)
    if cached is None and (adapter := cached_snapshot(hub_name, ADAPTER)) is not None:
        refuse_adapter(adapter)
    if cached is None:
        named = shown(text, 160) + ("" if text == hub_name else f" ({hub_name})")
        close = "" if hub_name in official_names() else nearest(hub_name, official_names())
        hint = f"fetch it with: {download_command(hub_name)}"
        raise CheckpointError(f"{named} is neither a folder nor in the Hugging Face cache{close or ';'} {hint}")
    return cached


def known_names() -> list[str]:
    """What a model may be called besides its path: ``demo`` and the aliases."""
    return [DEMO, *REPOSITORIES, *(short + TUNED for short in REPOSITORIES)]


def official_names() -> list[str]:
    """The hub names of the official checkpoints."""
    return [name + end for name in REPOSITORIES.values() for end in ("", TUNED)]


def download_command(hub_name: str) -> str:
    """The command line that fetches a hub model: ours for the official ones."""
    for size, known in REPOSITORIES.items():
        if hub_name in (known, known + TUNED):
            return f"gemma4 download --sizes {size.upper()}" + (" --it" if hub_name.endswith(TUNED) else "")
    return f"hf download {hub_name}"


def download(sizes: Sequence[str], it: bool = False, models_dir: Path | str | None = None) -> list[Path]:
    """Fetch official checkpoints; what is already there is kept and an interrupted download resumes.

    Args:
        sizes: ``E2B``, ``E4B``, ``26B-A4B``, ``31B`` in any case.
        it: the instruction-tuned checkpoints instead of the base ones.
        models_dir: folder that gets a subfolder per model; without it they go to the Hugging Face cache, where
            ``resolve_folder`` finds them by name.

    Returns:
        a folder per size.

    Raises:
        CheckpointError: unknown size (before anything is fetched), no network, no permission, no room.
    """
    names = repositories(sizes, it)
    return [fetch(name, None if models_dir is None else Path(models_dir)) for name in names]


def repositories(sizes: Sequence[str], it: bool = False) -> list[str]:
    """Hub names of sizes such as ``E2B`` or ``26B-A4B-it``, each once. Raises CheckpointError for another size."""
    names = []
    for size in sizes:
        known = size.lower().removesuffix(TUNED)
        if known not in REPOSITORIES:
            choices = ", ".join(key.upper() for key in REPOSITORIES)
            raise CheckpointError(f"--sizes {shown(size)} is not an official size; choose from {choices}")
        names.append(REPOSITORIES[known] + (TUNED if it or size.lower().endswith(TUNED) else ""))
    return list(dict.fromkeys(names))


def fetch(hub_name: str, models_dir: Path | None) -> Path:
    """Fetch one model. Raises CheckpointError in one line for everything that can go wrong."""
    from huggingface_hub import snapshot_download

    target = None if models_dir is None else models_dir / hub_name.split("/")[1]
    try:
        return Path(snapshot_download(hub_name, local_dir=target, allow_patterns=list(FILES)))
    except Exception as fault:
        reason = explain(fault, hub_name, shown_path(target) if target else "the Hugging Face cache")
        if reason is None:
            raise
        raise CheckpointError(f"{hub_name} {reason}") from fault


def explain(fault: Exception, hub_name: str, target: str) -> str | None:
    """What an exception of huggingface_hub or of the network beneath it means; None for a bug."""
    from huggingface_hub import constants, errors

    page = f"https://huggingface.co/{hub_name}"
    unreachable = "could not be fetched: huggingface.co cannot be reached; check the network and run it again"
    switched_off = "could not be fetched: HF_HUB_OFFLINE is set; unset it and run it again"
    if isinstance(fault, errors.GatedRepoError):
        return f"needs permission: accept its terms at {page}, then run: hf auth login"
    if isinstance(fault, errors.RepositoryNotFoundError):
        return f"is not found or not open to you: see {page}, then run: hf auth login"
    if isinstance(fault, errors.OfflineModeIsEnabled):
        return switched_off
    if isinstance(fault, errors.LocalEntryNotFoundError):
        return switched_off if constants.HF_HUB_OFFLINE else unreachable
    if isinstance(fault, errors.HfHubHTTPError):
        status = getattr(getattr(fault, "response", None), "status_code", "an error")
        return f"could not be fetched: huggingface.co answered {status}; run it again to go on"
    if isinstance(fault, OSError) and fault.errno in LOCAL_FAULTS:
        return f"could not be written to {target}: {fault.strerror}; run it again to go on"
    if isinstance(fault, OSError) or type(fault).__module__.split(".")[0] in NETWORK_MODULES:
        return unreachable
    return None
