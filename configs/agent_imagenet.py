"""Agent attention in DeiT, Swin and PVT on ImageNet-1k for 300 epochs (arXiv:2312.08874).

Published: deit_tiny 74.9, deit_small 80.5, deit_small_448 83.1, deit_base 82.0, pvt_tiny 78.4,
pvt_small 82.2, pvt_medium 83.4, pvt_medium_256 83.8, pvt_large 83.7, swin_tiny 82.6, swin_small
83.7, swin_small_288 84.1, swin_base 84.0 % top-1. Here: not yet run.
Settings follow the authors' configs (section 5.1). Augmentation and mixing are DeiT's. The drop
path rate is the variant's own; for PVT the authors warm up for 5 epochs and clip at 1 (medium,
large) or not at all. The authors tuned swin_base_384 (84.9 %) for 30 epochs from swin_base, which
this recipe does not do.
Run: python -m vitlab.train --config=configs/agent_imagenet.py:swin_tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="deit_tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"agent_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="20 epochs", weight_decay=0.05, clip_norm=5.0),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )
