"""Depth of the bundled scenes: items in front hide those behind, 64 x 64 pixels, minutes on two CPU
cores.

Depths lie between 1.1 and 10, the background's.

Here: an AbsRel of 0.180, 77.2 % of the pixels within a factor of 1.25, after 1000 steps, 131 s of
processor time (seed 0); see docs/howto/tasks.md.
Run: python -m vitlab.train --config=configs/depth_scenes.py --workdir=runs/depth
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
            task=TaskConfig(
                name="depth", fields={"head": "segformer_mlp", "head_options": {"dim": 64, "dropout_rate": 0.0}, "max_depth": 20.0}
            ),
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
