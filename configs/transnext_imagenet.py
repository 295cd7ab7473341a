"""TransNeXt, and MoH's form of it, on ImageNet-1k for 300 epochs, after the authors' scripts
(arXiv:2311.17132, arXiv:2410.11842).

Published: transnext_micro 82.5, transnext_tiny 84.0, transnext_small 84.7, transnext_base 84.8,
moh_transnext_small_80 84.7, moh_transnext_small_75 84.6, moh_transnext_base_75 84.9,
moh_transnext_base_50 84.7 % top-1. Here: not yet run. Drop path is the variant's own. With routed
heads the model adds a hundredth of the loss that balances them.
Run: python -m vitlab.train --config=configs/transnext_imagenet.py:transnext_micro --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="transnext_micro"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=variant, dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=1.0),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )
