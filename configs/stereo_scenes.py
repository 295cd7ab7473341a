"""Stereo of the bundled scenes: disparities from 0 to 8 pixels, 64 x 64 pixels, minutes on two CPU
cores.

A flip would need the disparity of the right view, which the task does not read.

Here: an error (EPE) of 0.101 pixels after 800 steps, 331 s of processor time (seed 0; OpenCV's
SGBM: 0.473); see docs/howto/tasks.md.
Run: python -m vitlab.train --config=configs/stereo_scenes.py --workdir=runs/stereo
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
                    "depths": (1, 1, 1),
                    "stem_dims": (16, 16, 32),
                    "conv_dims": (32, 48, 64),
                    "attn_dims": (32, 64, 64),
                    "sr_ratios": (4, 2, 1),
                    "head_dim": 16,
                },
            ),
            task=TaskConfig(name="stereo", fields={"max_disparity": 8}),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center", flip=False),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup="100 steps"),
            batch_size=8,
            duration="800 steps",
            log_every="100 steps",
            eval_every="400 steps",
            eval_batch_size=50,
            checkpoint_every="400 steps",
        )
    )
