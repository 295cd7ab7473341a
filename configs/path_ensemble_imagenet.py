"""Path ensembles of DeiT on ImageNet-1k for 300 epochs, by DeiT's recipe (arXiv:2308.06548;
arXiv:2012.12877).

Published: the accuracies of the ensembles are in the paper only. Here: not yet run. Set
`model.fields.ensemble_scale` for learned factors.
Run: python -m vitlab.train --config=configs/path_ensemble_imagenet.py:deit_tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="deit_tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"path_ensemble_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25, repeats=3),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )
