"""Fine-tuning: batches, loss, optimizers over a model's own tensors, steps, and checkpoints that resume."""

from gemma4_core.training.batch import GemmaTrainingBatch
from gemma4_core.training.checkpoint import load_training_checkpoint, save_training_checkpoint
from gemma4_core.training.loss import compute_loss
from gemma4_core.training.optimizer import TrainingOptimizer, build_optimizer
from gemma4_core.training.schedules import cosine, linear
from gemma4_core.training.step import train_step

__all__ = [
    "GemmaTrainingBatch",
    "TrainingOptimizer",
    "build_optimizer",
    "compute_loss",
    "cosine",
    "linear",
    "load_training_checkpoint",
    "save_training_checkpoint",
    "train_step",
]
