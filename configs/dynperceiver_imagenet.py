"""Dynamic Perceiver on MobileNetV3 on ImageNet-1k, after the authors' README (arXiv:2306.11248,
appendix).

Published: mbv3_075_t128 74.59 % top-1 at the last exit (53.13, 71.65 and 71.89 at the first three).
Here: not yet run. All four exits are trained, and the last one's logits distilled into the others.
Run: python -m vitlab.train --config=configs/dynperceiver_imagenet.py:mbv3_075_t128 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="mbv3_075_t128"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"dynperceiver_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="20 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )
