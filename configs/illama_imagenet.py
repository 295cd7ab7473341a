"""iLLaMA on ImageNet-1k for 300 epochs, after the authors' scripts (arXiv:2404.06773, table 11).

Published: tiny 75.0, small 79.9, base 81.6 % top-1; large, after ImageNet-21k, 84.8. Here: not yet
run. Mixing is that of tiny; base has mixup 0.95 and cutmix 1. The authors begin with
`model.fields.soft_mask_rate=1` (tiny: for 50 epochs, then 0 from its weights).
Run: python -m vitlab.train --config=configs/illama_imagenet.py:tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"illama_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.1, cutmix_alpha=0.1),
            optimizer=OptimizerConfig(peak_lr=4e-3, end_lr=1e-6, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=4096,
            duration="300 epochs",
        )
    )
