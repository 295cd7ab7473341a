"""CSWin, and its agent and InLine forms, on ImageNet-1k for 300 epochs, after the authors' settings
(arXiv:2107.00652, section 4.1).

Published: cswin_tiny 82.8, cswin_small 83.6, cswin_base 84.2, agent_cswin_tiny 83.1,
agent_cswin_small 83.9, agent_cswin_base 84.7, inline_cswin_tiny 83.2, inline_cswin_small 83.8,
inline_cswin_base 84.5 % top-1. Here: not yet run. Drop path is the variant's own; weight decay is
0.1 for base.
Run: python -m vitlab.train --config=configs/cswin_imagenet.py:cswin_tiny --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, MixConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="cswin_tiny"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=variant, dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25),
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="20 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            ema_decay=0.99984,
            batch_size=1024,
            duration="300 epochs",
        )
    )
