"""Semantic segmentation of the bundled scenes: eleven classes, 64 x 64 pixels, minutes on two CPU
cores.

Patches of 4 make 256 tokens. A pixel shuffle over one map of all is cheap on a CPU;
task.head=upernet gives a plain trunk ViTDet's simple feature pyramid first.

Here: not yet run to its end; with patches of 8 and 500 steps a mIoU of 0.246.
Run: python -m vitlab.train --config=configs/segment_scenes.py --workdir=runs/segment
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
            task=TaskConfig(name="segmentation", fields={"head": "pixel_shuffle", "head_options": {"dim": 64}}),
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
