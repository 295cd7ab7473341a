"""Classes of the items in the bundled scenes: any of ten an image, 64 x 64 pixels, minutes on two
CPU cores.

The model's own head, a sigmoid for each class.

Here: not yet run.
Run: python -m vitlab.train --config=configs/multilabel_scenes.py --workdir=runs/multilabel
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
            task=TaskConfig(name="multilabel"),
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
