"""What a hook returns: frozen descriptions, one dataclass per kind of plugin.

A description is cheap to make and opens nothing; the work is in its factories, which the core calls when the part
is needed. The protocols beside them say what a factory must return.
"""

from gemma4_core.contracts.callbacks import CallbackBackend, TrainingCallback
from gemma4_core.contracts.constraints import ANSWER_KEY, AnswerContext, ConstraintBackend
from gemma4_core.contracts.context import FORMAT_KEY, Context, Headers, Matches, Option, SideFile, TensorInfo, always
from gemma4_core.contracts.devices import DeviceBackend, DeviceSettings, Staging
from gemma4_core.contracts.drafters import DrafterBackend
from gemma4_core.contracts.formats import CheckpointFormat, CheckpointMetadata, WeightBlocks, WeightSource
from gemma4_core.contracts.kinds import KINDS, Description
from gemma4_core.contracts.modalities import MediaProcessor, ModalityTower, PreparedMedia, Tower
from gemma4_core.contracts.optimizers import Optimizer, OptimizerBackend
from gemma4_core.contracts.steps import Constraint, Drafter
from gemma4_core.contracts.tokenizers import ByteTokenizer, StreamDecoder, Tokenizer, TokenizerBackend
from gemma4_core.contracts.transforms import AdapterSet, ModelTransform, TrainedPart

__all__ = [
    "ANSWER_KEY",
    "FORMAT_KEY",
    "KINDS",
    "AdapterSet",
    "AnswerContext",
    "ByteTokenizer",
    "CallbackBackend",
    "CheckpointFormat",
    "CheckpointMetadata",
    "Constraint",
    "ConstraintBackend",
    "Context",
    "Description",
    "DeviceBackend",
    "DeviceSettings",
    "Drafter",
    "DrafterBackend",
    "Headers",
    "Matches",
    "MediaProcessor",
    "ModalityTower",
    "ModelTransform",
    "Optimizer",
    "OptimizerBackend",
    "Option",
    "PreparedMedia",
    "SideFile",
    "Staging",
    "StreamDecoder",
    "TensorInfo",
    "Tokenizer",
    "TokenizerBackend",
    "Tower",
    "TrainedPart",
    "TrainingCallback",
    "WeightBlocks",
    "WeightSource",
    "always",
]
