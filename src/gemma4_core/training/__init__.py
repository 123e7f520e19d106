"""Fine-tuning: batches, loss, optimizers over a model's own tensors, steps, runs, and checkpoints that resume."""

from gemma4_core.contracts import CallbackBackend, TrainingCallback
from gemma4_core.training.batch import GemmaTrainingBatch
from gemma4_core.training.checkpoint import load_training_checkpoint, save_training_checkpoint
from gemma4_core.training.data import Batches, Encoding, Example, Examples, read_examples
from gemma4_core.training.evaluate import EvaluationReport, Evaluator, perplexity
from gemma4_core.training.loss import compute_loss
from gemma4_core.training.optimizer import TrainingOptimizer, build_optimizer
from gemma4_core.training.schedules import constant, cosine, linear
from gemma4_core.training.step import train_step
from gemma4_core.training.trainer import Plan, StepReport, Trainer

__all__ = [
    "Batches",
    "CallbackBackend",
    "Encoding",
    "EvaluationReport",
    "Evaluator",
    "Example",
    "Examples",
    "GemmaTrainingBatch",
    "Plan",
    "StepReport",
    "Trainer",
    "TrainingCallback",
    "TrainingOptimizer",
    "build_optimizer",
    "compute_loss",
    "constant",
    "cosine",
    "linear",
    "load_training_checkpoint",
    "perplexity",
    "read_examples",
    "save_training_checkpoint",
    "train_step",
]
