"""Detection of the items in the bundled scenes: ten classes, 64 x 64 pixels, minutes on two CPU
cores.

Centres lie on a grid of stride 4, that of the patches.

Here: an AP50 of 0.650 (AP 0.461) after 3000 steps, 565 s of processor time (seed 0); see
docs/howto/tasks.md.
Run: python -m vitlab.train --config=configs/detect_scenes.py --workdir=runs/detect
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
            task=TaskConfig(name="detection", fields={"head_options": {"dim": 64}, "max_boxes": 20}),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center"),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup="100 steps"),
            batch_size=16,
            duration="3000 steps",
            log_every="200 steps",
            eval_every="1000 steps",
            eval_batch_size=250,
            checkpoint_every="1000 steps",
        )
    )
