"""Counting of the items in the bundled scenes: one number an image, 64 x 64 pixels, minutes on two
CPU cores.

The count is the sum of a density that is learned from the number alone.

Here: not yet run to its end; 400 steps reach a mean error of 0.73 objects (the median guess: 1.42).
Run: python -m vitlab.train --config=configs/count_scenes.py --workdir=runs/count
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, ModelConfig, OptimizerConfig, TaskConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="vit_tiny_patch16",
                image_size=64,
                fields={"patch_size": 8, "dim": 96, "depth": 4, "num_heads": 3, "pool": "mean"},
            ),
            task=TaskConfig(name="regression", fields={"field": "count", "head_options": {"dim": 64}}),
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
