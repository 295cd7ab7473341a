"""Classes of the items in the bundled scenes: any of ten an image, 64 x 64 pixels, minutes on two
CPU cores.

The model's own head, a sigmoid for each class.

Here: a mAP of 0.575 after 2000 steps, 192 s of processor time (seed 0; a guess: 0.30); see
docs/howto/tasks.md.
Run: python -m vitlab.train --config=configs/multilabel_scenes.py --workdir=runs/multilabel
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
            task=TaskConfig(name="multilabel"),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center"),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup="100 steps"),
            batch_size=16,
            duration="2000 steps",
            log_every="100 steps",
            eval_every="500 steps",
            eval_batch_size=250,
            checkpoint_every="500 steps",
        )
    )
