"""Models: one transformer, read from and written to published checkpoints."""

from unmask.models.checkpoint import Checkpoint, load_model, load_weights
from unmask.models.config import ModelConfig
from unmask.models.families import Family
from unmask.models.hub import read_config, resolve_source
from unmask.models.network import Network
from unmask.models.transformer import Transformer
from unmask.models.writing import save

__all__ = [
    "Checkpoint",
    "Family",
    "ModelConfig",
    "Network",
    "Transformer",
    "load_model",
    "load_weights",
    "read_config",
    "resolve_source",
    "save",
]
