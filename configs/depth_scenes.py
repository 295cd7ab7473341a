"""Depth of the bundled scenes: items in front hide those behind, 64 x 64 pixels, minutes on two CPU
cores.

Depths lie between 1.1 and 10, the background's.

Here: not yet run.
Run: python -m vitlab.train --config=configs/depth_scenes.py --workdir=runs/depth
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, ModelConfig, OptimizerConfig, TaskConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="vit_tiny_patch16",
                image_size=64,
                fields={"patch_size": 4, "dim": 96, "depth": 4, "num_heads": 3, "pool": "mean"},
            ),
            task=TaskConfig(name="depth", fields={"head": "pixel_shuffle", "head_options": {"dim": 64}, "max_depth": 20.0}),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center"),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup="100 steps"),
            batch_size=32,
            duration="2000 steps",
            log_every="100 steps",
            eval_every="500 steps",
            eval_batch_size=100,
            checkpoint_every="500 steps",
        )
    )
