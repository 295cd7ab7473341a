"""Terminator on CIFAR-10 or CIFAR-100 for 100 epochs, after the author's cfg/config.yaml
(arXiv:2401.17948).

Published: CIFAR-10 95.32, CIFAR-100 75.68 % top-1 (exp_logs). Here: not yet run. The author's
optimizer is Kar3, of Adam's family, whose place AdamW takes.
Run: python -m vitlab.train --config=configs/terminator_cifar.py:cifar100 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="cifar10"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"terminator_{variant}", image_size=32),
            data=DataConfig(source="tfds", name=f"{variant}_jpeg", train_split="train", eval_split="test"),
            augment=AugmentConfig(crop="pad", pad=4),
            optimizer=OptimizerConfig(peak_lr=1.215e-3, end_lr=0.0, warmup="8 epochs", weight_decay=5e-5, clip_norm=None),
            loss=LossConfig(label_smoothing=0.09),
            batch_size=64,
            duration="100 epochs",
        )
    )
