"""Stereo of the bundled scenes: disparities from 0 to 8 pixels, 64 x 64 pixels, minutes on two CPU
cores.

A flip would need the disparity of the right view, which the task does not read.

Here: not yet run.
Run: python -m vitlab.train --config=configs/stereo_scenes.py --workdir=runs/stereo
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, ModelConfig, OptimizerConfig, TaskConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="vit_tiny_patch16",
                image_size=64,
                fields={"patch_size": 8, "dim": 48, "depth": 4, "num_heads": 3, "pool": "mean"},
            ),
            task=TaskConfig(name="stereo", fields={"max_disparity": 8}),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center", flip=False),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup="100 steps"),
            batch_size=32,
            duration="2000 steps",
            log_every="100 steps",
            eval_every="500 steps",
            eval_batch_size=100,
            checkpoint_every="500 steps",
        )
    )
