"""SViT on ImageNet-1k for 300 epochs, after the authors' run.sh (arXiv:2211.11167, section 4.1).

Published: small 83.6, base 84.8, large 85.3 % top-1. Here: not yet run.
The paper also has DeiT's augmentation with repeated batches and an EMA of 0.99996, which this recipe leaves out for now. Drop path is
the variant's own.
Run: python -m vitlab.train --config=configs/svit_imagenet.py:small --workdir=... --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="small"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"svit_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized"),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="300 epochs",
        )
    )
