"""Semantic segmentation of the bundled scenes: eleven classes, 64 x 64 pixels, minutes on two CPU
cores.

A narrow Next-ViT, whose maps of stride 4, 8 and 16 suit items of 16 to 37 pixels. After 250 steps
of 32 images (92 s of processor time) its loss was 0.67, that of a plain ViT with patches of 8 and a
pixel shuffle (75 s) 0.77. An image has 64 x 64 labels: small batches do, and there can be many.

Here: a mIoU of 0.521 after 4000 steps, 601 s of processor time (seed 0); see docs/howto/tasks.md.
Run: python -m vitlab.train --config=configs/segment_scenes.py --workdir=runs/segment
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
            task=TaskConfig(name="segmentation", fields={"head": "segformer_mlp", "head_options": {"dim": 64, "dropout_rate": 0.0}}),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center"),
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup="100 steps"),
            batch_size=16,
            duration="4000 steps",
            log_every="200 steps",
            eval_every="1000 steps",
            eval_batch_size=250,
            checkpoint_every="1000 steps",
        )
    )
