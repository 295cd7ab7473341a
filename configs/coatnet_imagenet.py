"""CoAtNet on ImageNet-1k for 300 epochs, after the paper's settings (arXiv:2106.04803, section
A.2).

Published: 0 81.6, 1 83.3, 2 84.1, 3 84.5 % top-1; 4 and 5 with further images only. Here: not yet
run. RandAugment is timm's form of the paper's (2, 15). Drop path is the variant's own.
Run: python -m vitlab.train --config=configs/coatnet_imagenet.py:0 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="0"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"coatnet_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m15-mmax15"),
            mix=MixConfig(mixup_alpha=0.8),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="10000 steps", weight_decay=0.05, clip_norm=1.0),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=4096,
            duration="300 epochs",
        )
    )
