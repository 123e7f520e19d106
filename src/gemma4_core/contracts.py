"""What a hook returns: frozen descriptions, one dataclass per kind of plugin.

A description is cheap to make and opens nothing; the work is in its factories, which the core calls when the part
is needed. The protocols at the end of each section say what a factory must return.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from tinygrad import Tensor
    from tinygrad.device import Buffer

    from gemma4_core.config import GemmaConfig
    from gemma4_core.model import GemmaModel
    from gemma4_core.ops import Operations
    from gemma4_core.weights import ExpertStack, Matrix


@dataclass(frozen=True)
class Context:
    """What ``matches`` and the factories see of a checkpoint folder. All fields are None or empty without a folder."""

    folder: Path | None = None
    config: GemmaConfig | None = None
    """The parsed config."""
    raw_config: Mapping[str, Any] = field(default_factory=dict)
    """config.json as read, keys that the core does not know included."""

    def file(self, name: str) -> Path | None:
        """The path of a file directly in the folder, or None where it is absent. What else has the name, such as a pipe
        or a link to nothing, is told where it is read."""
        path = self.folder / name if self.folder else None
        return path if path is not None and os.path.lexists(path) else None


Matches = Callable[[Context], bool]


def always(context: Context) -> bool:
    """The default of ``matches``."""
    return True


@dataclass(frozen=True)
class Option:
    """A command-line option that a plugin adds to ``generate``, ``chat`` (and ``train`` for transforms).

    The parsed value reaches the plugin under ``keyword`` (the flag without dashes, ``-`` as ``_``).
    """

    flag: str
    help: str
    type: type = str
    multiple: bool = False
    default: Any = None
    metavar: str | None = None
    choices: tuple[Any, ...] = ()
    """The values that it takes, where they are few; another one is a usage error."""
    training: bool = False
    """Whether ``train`` alone takes it."""

    @property
    def keyword(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")


# ---------------------------------------------------------------------------------------------------- formats


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a checkpoint as its header declares it."""

    dtype: str
    """The safetensors name of the *logical* dtype: BF16, F16, F32, I8, …"""
    shape: tuple[int, ...]
    nbytes: int
    """Bytes that it takes in the file, scales and the like included."""


class WeightSource(Protocol):
    """An open checkpoint folder: headers are read and validated, no tensor data yet."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every logical tensor by its full name. Parts such as scales are not listed on their own."""

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A realized plain tensor on a device in the wanted dtype (tinygrad dtype)."""

    def matrix(self, name: str, device: str, dtype: Any) -> Matrix:
        """The matrix ``[out, in]`` under this name, held in the format's storage type, computing in ``dtype``."""

    def stack(self, name: str, device: str, dtype: Any) -> ExpertStack:
        """The stack of expert matrices ``[experts, out, in]`` under this name."""

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]`` of a matrix kept off the device: read from the
        file as needed, or held in host memory."""

    def close(self) -> None:
        """Release file handles; tensors handed out stay valid."""


@dataclass(frozen=True)
class CheckpointFormat:
    """A way to store weights. Give ``matches`` that looks at the folder's manifest: config.json and file headers."""

    name: str
    summary: str
    open: Callable[[Context], WeightSource]
    """Open a folder lazily. Raises CheckpointError for damaged files, naming file and tensor."""
    save: Callable[[Iterable[tuple[str, Matrix | ExpertStack | Tensor]], Path, Context], None] | None = None
    """Write tensors under their full names into an existing empty folder, as ``*.safetensors`` and what else the
    format's manifest needs; the core writes config and tokenizer files and swaps the folder in."""
    matches: Matches = always
    priority: int = 0


# ---------------------------------------------------------------------------------------------------- modalities


@dataclass(frozen=True)
class PreparedMedia:
    """Media of one prompt made ready for a tower."""

    features: Mapping[str, np.ndarray]
    """Plain arrays by ``forward_ids`` keyword."""
    expansions: Sequence[str]
    """One text per medium that replaces its placeholder: begin token, soft tokens, end token, …"""
    soft_tokens: Sequence[int]
    """How many soft tokens each medium takes."""
    seconds: Sequence[float] = ()
    """How long each medium lasts, for media that last; used in statistics."""


class MediaProcessor(Protocol):
    """Reads media and makes features; needs no weights."""

    def load(self, source: Any) -> Any:
        """Read one medium and make what is costly of it: the result may be kept and used again.

        Files, bytes, URLs and standard input come as ``gemma4_core.processing.MediaSource``; arrays and library
        objects come as they were given. Raises InputError naming the source.
        """

    def prepare(self, items: Sequence[Any]) -> PreparedMedia:
        """Features of loaded media, in order."""


class Tower(Protocol):
    """An assembled tower with its weights."""

    def parameters(self) -> Mapping[str, Tensor]:
        """Its tensors by full checkpoint name (empty for a tower that borrows another's weights)."""

    def encode(self, features: Mapping[str, Any], *, capture: bool = False) -> list[Tensor]:
        """Soft tokens of each medium in order, ``[n, hidden]`` in the model's dtype.

        Without ``capture`` gradients flow to the tower's weights. With it nothing is differentiated: the tower may
        run captured graphs and return tokens that it keeps of equal media. Raises InputError for features that are
        not of the tower's making.
        """

    def digests(self, features: Mapping[str, Any]) -> list[bytes]:
        """A content hash of each medium in order: equal hashes mean equal soft tokens."""

    def forget(self) -> None:
        """Drop kept tokens and captured graphs, after weights have changed.

        A tower may also have ``forget_tokens()``, which drops the tokens alone: for values that were written into the
        tensors that were there.
        A tower may also have ``places``, its matrices by full checkpoint name in ``Weight`` holders as the model's
        own: a transform can then exchange them.
        """


@dataclass(frozen=True)
class ModalityTower:
    """A modality. ``matches`` says whether config.json declares it."""

    name: str
    summary: str
    processor: Callable[[Context, Mapping[str, Any]], MediaProcessor]
    """Build the processor from the folder's processor config and the values of ``options`` by keyword."""
    build: Callable[[GemmaModel, WeightSource], Tower]
    """Build the tower on the model's device in ``model.dtype``. ``model.towers`` holds those built before."""
    tensors: Callable[[GemmaConfig], Mapping[str, tuple[int, ...]]]
    """Every checkpoint tensor that the tower needs, by full name with its shape."""
    placeholder: str
    """What stands for one medium in a prompt, such as ``<|image|>``."""
    soft_token_id: Callable[[GemmaConfig], int]
    """The id that its soft tokens carry in the prompt."""
    media_option: Option
    """The option that takes media, such as ``--image``; its keyword in Python is ``media_keyword``."""
    media_keyword: str
    """The argument of ``prepare_inputs`` and ``stream_generate``, such as ``images``."""
    token_ids: Callable[[GemmaConfig], Mapping[str, int]] | None = None
    """The ids of the special tokens in its expansions by their text, for folders whose tokenizer lacks them;
    None means the placeholder alone."""
    options: tuple[Option, ...] = ()
    """Further options, such as ``--image-tokens``."""
    keywords: tuple[str, ...] = ()
    """The ``forward_ids`` keywords, first the one that must be there."""
    bidirectional: bool = False
    """Whether tokens of one medium see each other where the config says ``use_bidirectional_attention: vision``."""
    placed: str = "before"
    """Where media without a placeholder go: ``before`` or ``after`` the text."""
    requires: tuple[str, ...] = ()
    """Names of towers that must be built first."""
    amount: Callable[[Mapping[str, Any]], tuple[float, str]] | None = None
    """How much media its features hold, and of what one, for statistics: ``(2, "image")``, ``(9.8, "second")``; None
    counts media as they come from ``Tower.encode``."""
    matches: Matches = always
    priority: int = 0


# ---------------------------------------------------------------------------------------------------- tokenizers


class StreamDecoder(Protocol):
    """Turns ids into text as they come."""

    def add(self, token: int) -> str:
        """The text that is complete now, perhaps empty: bytes of an unfinished character are held back."""

    def flush(self) -> str:
        """What was held back, with U+FFFD for an unfinished character."""


class Tokenizer(Protocol):
    """A tokenizer for one folder."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens by their text."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; nothing is added. Special tokens in it are recognised; with ``special=False`` their spellings
        are text like any other. Raises TokenizerError."""

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids, invalid UTF-8 as U+FFFD. Raises TokenizerError for an id outside the vocabulary."""

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        """A fresh incremental decoder."""


@dataclass(frozen=True)
class TokenizerBackend:
    """A tokenizer library. ``matches`` says whether it can serve the folder."""

    name: str
    summary: str
    load: Callable[[Context], Tokenizer]
    """Load the folder's tokenizer. Raises TokenizerError."""
    matches: Matches = always
    priority: int = 0


# ---------------------------------------------------------------------------------------------------- devices


@dataclass(frozen=True)
class DeviceSettings:
    """What the user asked of a device."""

    beam: int = 0
    """Width of tinygrad's kernel search, 0 is off."""
    beam_seconds: float = 120.0
    """Time budget of that search for the whole process."""


class Staging(Protocol):
    """Memory that a device copies from by itself, such as page-locked memory: files are read into its slots."""

    slots: Sequence[np.ndarray]
    """uint8, of equal size, a multiple of 16 bytes."""

    def copy(self, slot: int, size: int, buffer: Buffer, offset: int) -> None:
        """Queue a copy of a slot's first ``size`` bytes into a buffer of the device, ``offset`` bytes from its start,
        ahead of the device's later work."""

    def wait(self, slot: int) -> None:
        """Return when no copy reads the slot any more."""


@dataclass(frozen=True)
class DeviceBackend:
    """A device. ``priority`` orders ``--device auto``; the first usable one is taken."""

    name: str
    summary: str
    target: str
    """tinygrad's device name, such as ``CPU`` or ``CUDA``."""
    unusable: Callable[[], str | None]
    """None where the device opens; else why not, in one sentence with a next step. Opens the device to know."""
    prepare: Callable[[DeviceSettings], None] | None = None
    """Set tinygrad up (compiler, threads, beam) before the device is used."""
    operations: Callable[[], Operations] | None = None
    """The fast operations that it brings; portable ones otherwise."""
    free_memory: Callable[[], int | None] | None = None
    """Free memory in bytes of the opened device; None where it does not tell."""
    details: Callable[[], Mapping[str, str]] | None = None
    """What ``gemma4 doctor`` shows of the opened device, such as its model or compiler, by name."""
    read_bandwidth: Callable[[], float | None] | None = None
    """Bytes per second of a plain read of more memory than caches hold, measured when asked on the opened device; None
    where it cannot be told. Without it a sum of tinygrad's is timed."""
    staging: Callable[[], Staging] | None = None
    """Memory to load checkpoints through, made on the opened device and let go after a load; without it tinygrad
    copies."""
    matches: Matches = always
    priority: int = 0


# ---------------------------------------------------------------------------------------------------- optimizers


class Optimizer(Protocol):
    """What ``OptimizerBackend.build`` returns; a tinygrad optimizer is accepted as it is."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


@dataclass(frozen=True)
class OptimizerBackend:
    """An optimizer. ``build(named_params, *, lr, weight_decay, **options)`` gets the model's own tensors by name and
    the options that were given; where it names its options as keywords, another one is refused before it is called. It
    finds gradients in ``.grad``, is stepped inside ``Context(TRAINING=1)`` and updates in place. The object has
    ``step()``, ``zero_grad()``, ``state_dict()`` (flat, name to Tensor) and ``load_state_dict(d)``."""

    name: str
    summary: str
    build: Callable[..., Any]
    matches: Matches = always
    priority: int = 0


# ---------------------------------------------------------------------------------------------------- transforms


@dataclass(frozen=True)
class TrainedPart:
    """What trains and is saved in place of the whole model, such as an adapter's matrices."""

    tensors: Mapping[str, Tensor]
    """All that may train, by name; ``trainable`` and ``frozen`` choose among these. The rest of the model is frozen."""
    save: Callable[[Path], None]
    """Write its own files into an existing folder; the core writes the optimizer's state beside them and makes the
    folder appear whole. Raises CheckpointError."""
    load: Callable[[Path], None]
    """Read back in place what ``save`` wrote: the same ``tensors`` with that content, bit for bit. Raises
    CheckpointError, with nothing changed, where the files do not fit."""


@dataclass(frozen=True)
class ModelTransform:
    """A change to an assembled model before it runs or trains."""

    name: str
    summary: str
    apply: Callable[[GemmaModel, Mapping[str, Any]], None]
    """Change the model in place; gets the values of ``options`` by keyword. Called only when ``wanted`` holds."""
    options: tuple[Option, ...] = ()
    files: tuple[str, ...] = ()
    """Names of files or folders inside a checkpoint that are this transform's own."""
    trained_part: Callable[[GemmaModel, Mapping[str, Any]], TrainedPart | None] | None = None
    """Asked after ``apply`` with the same arguments: what then trains and is saved in place of the whole model. None:
    the model trains and is saved whole. It becomes ``model.trained_part``, which ``build_optimizer``,
    ``save_training_checkpoint`` and ``load_training_checkpoint`` go by."""
    check: Callable[[Context, Mapping[str, Any]], None] | None = None
    """Look at the values of ``options`` before any weight is read; raises a Gemma4Error where ``apply`` would."""
    based_on: Callable[[Path], tuple[str | None, Mapping[str, Any]] | None] | None = None
    """What a folder without weights of a model stands for, where it is this transform's, such as an adapter: name or
    folder of the checkpoint that it is made for (None where it does not say) and the ``options`` that apply it. None
    for any other folder."""
    matches: Matches = always
    priority: int = 0

    def wanted(self, values: Mapping[str, Any], context: Context) -> bool:
        """Whether one of its options was given or one of its files is in the folder."""
        given = any(values.get(option.keyword) not in (None, (), option.default) for option in self.options)
        return given or any(context.folder is not None and (context.folder / name).exists() for name in self.files)


Description = CheckpointFormat | ModalityTower | TokenizerBackend | DeviceBackend | OptimizerBackend | ModelTransform

KINDS: dict[str, tuple[str, type]] = {
    "format": ("gemma4_checkpoint_formats", CheckpointFormat),
    "modality": ("gemma4_modality_towers", ModalityTower),
    "tokenizer": ("gemma4_tokenizers", TokenizerBackend),
    "device": ("gemma4_devices", DeviceBackend),
    "optimizer": ("gemma4_optimizers", OptimizerBackend),
    "transform": ("gemma4_model_transforms", ModelTransform),
}
"""Kind as the command shows it, to its hook and its dataclass."""
