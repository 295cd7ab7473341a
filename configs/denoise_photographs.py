"""Denoising of the bundled photographs: normal noise of deviation 25, pieces of 64 x 64 pixels,
minutes on two CPU cores.

With task.degradation=downscale the same recipe learns super-resolution by 2.

Here: not yet run.
Run: python -m vitlab.train --config=configs/denoise_photographs.py --workdir=runs/denoise
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
            task=TaskConfig(name="restoration", fields={"sigma": 25.0}),
            data=DataConfig(source="photographs"),
            augment=AugmentConfig(crop="random"),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup="100 steps"),
            batch_size=32,
            duration="2000 steps",
            log_every="100 steps",
            eval_every="500 steps",
            eval_batch_size=100,
            checkpoint_every="500 steps",
        )
    )
