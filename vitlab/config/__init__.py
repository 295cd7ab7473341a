"""The experiment as typed, frozen dataclasses, and its conversion to `ConfigDict` and JSON.

`python -m vitlab.config` prints every key.
"""

from pallas_kernels.command_line import near_misses
from vitlab.config.durations import duration_in_steps, parse_duration
from vitlab.config.errors import ConfigError, refusing
from vitlab.config.experiment import (
    AugmentConfig,
    DataConfig,
    DistillationConfig,
    Experiment,
    LossConfig,
    MeshConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    SourceConfig,
    TaskConfig,
)
from vitlab.config.smoke import smoke
from vitlab.config.trees import difference, from_config_dict, to_config_dict, to_dict, to_json
from vitlab.config.values import typed

__all__ = [
    "AugmentConfig",
    "ConfigError",
    "DataConfig",
    "DistillationConfig",
    "Experiment",
    "LossConfig",
    "MeshConfig",
    "MixConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SourceConfig",
    "TaskConfig",
    "difference",
    "duration_in_steps",
    "from_config_dict",
    "near_misses",
    "parse_duration",
    "refusing",
    "smoke",
    "to_config_dict",
    "to_dict",
    "to_json",
    "typed",
]
