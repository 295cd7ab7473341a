"""ConvNeXt on ImageNet-1k for 300 epochs, after the authors' TRAINING.md (arXiv:2201.03545,
appendix A.1).

Published: tiny 82.1, small 83.1, base 83.8, large 84.3 % top-1. Here: not yet run. Drop path is the
variant's own. ConvNeXt V2's accuracies need masked pre-training.
Run: python -m vitlab.train --config=configs/convnext_imagenet.py:tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"convnext_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=4e-3, end_lr=1e-6, warmup="20 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.9999,
            batch_size=4096,
            duration="300 epochs",
        )
    )
