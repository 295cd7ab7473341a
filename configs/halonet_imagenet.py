"""HaloNet on ImageNet-1k for 350 epochs (arXiv:2103.12731).

Published: H0 77.9, H1 79.9, H2 80.4, H3 81.9, H4 83.3, H5 84.0, H6 84.4, H7 84.9 % top-1.
Here: not yet run.
The authors published no code. The recipe is EfficientNet's, which the paper follows. The authors'
optimizer is stochastic gradient descent with momentum at an unknown rate; here optimizer, learning
rate and decay are AdamW with its usual values. RandAugment is timm's version. Stochastic depth in
the larger variants, of an unknown rate, is left out.
Run: python -m vitlab.train --config=configs/halonet_imagenet.py:h1 --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="h1"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"halonet_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m15-mmax15"),
            optimizer=OptimizerConfig(peak_lr=4e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=1.0),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=4096,
            duration="350 epochs",
        )
    )
