"""Vision-RWKV on ImageNet-1k for 300 epochs, after the authors' configs/vrwkv (arXiv:2403.02308,
section 4.1).

Published: tiny 75.1, small 80.1, base 82.0 % top-1. Here: not yet run. All is Swin's; drop path is
the variant's own, and tiny mixes no images.
Run: python -m vitlab.train --config=configs/vrwkv_imagenet.py:tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict

MIX = {"tiny": MixConfig()}


def get_config(variant="tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"vrwkv_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MIX.get(variant, MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0)),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="20 epochs", weight_decay=0.05, clip_norm=5.0),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )
