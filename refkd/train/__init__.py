"""Training: optimisers, schedules, the loop, checkpoints and run folders."""

from refkd.train.checkpoint import load_checkpoint, save_checkpoint
from refkd.train.loop import Monitor, begin, initialise, train
from refkd.train.optim import SGD, Adam, AdamW
from refkd.train.progress import Progress
from refkd.train.schedule import Constant, Cosine, Linear, Step, WarmUp

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Linear",
    "Monitor",
    "Progress",
    "Step",
    "WarmUp",
    "begin",
    "initialise",
    "load_checkpoint",
    "save_checkpoint",
    "train",
]
