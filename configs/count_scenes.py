"""Counting of the items in the bundled scenes: one number an image, 64 x 64 pixels, minutes on two
CPU cores.

The count is the sum of a density that is learned from the number alone.

Here: a mean error of 0.586 objects after 1000 steps, 136 s of processor time (seed 0; the median
guess: 1.42); see docs/howto/tasks.md.
Run: python -m vitlab.train --config=configs/count_scenes.py --workdir=runs/count
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, ModelConfig, OptimizerConfig, TaskConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="nextvit_small",
                image_size=64,
                drop_path_rate=0.0,
                fields={
                    "depths": (1, 2, 2),
                    "stem_dims": (16, 16, 32),
                    "conv_dims": (64, 96, 128),
                    "attn_dims": (64, 128, 128),
                    "sr_ratios": (4, 2, 1),
                },
            ),
            task=TaskConfig(name="regression", fields={"field": "count", "head_options": {"dim": 64}}),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center"),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup="100 steps"),
            batch_size=16,
            duration="1000 steps",
            log_every="100 steps",
            eval_every="500 steps",
            eval_batch_size=250,
            checkpoint_every="500 steps",
        )
    )
