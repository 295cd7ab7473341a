"""ViT on ImageNet-1k for 90 epochs, after "Better plain ViT baselines" (arXiv:2205.01580).

Published: small_patch16 76.5 % top-1 in 90 epochs, 6 to 7 h on TPU v3-8. Here: not yet run.
RandAugment is timm's version of the paper's (2 operations, magnitude 10), without Cutout.
Run: python -m vitlab.train --config=configs/vit_imagenet.py:small_patch16 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="small_patch16"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name=f"vit_{variant}",
                dtype="bfloat16",
                fields={"pool": "mean", "pos_embed": "sincos2d"},
            ),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train[:99%]", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", crop_scale=(0.05, 1.0), interpolation="bilinear", policy="rand-m10"),
            mix=MixConfig(mixup_alpha=0.2),
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup="10000 steps", weight_decay=1e-4 / 1e-3, clip_norm=1.0),
            batch_size=1024,
            duration="90 epochs",
        )
    )
