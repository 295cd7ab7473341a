"""Hierarchical SpectFormer on ImageNet-1k for 310 epochs (arXiv:2304.06446, section 4.1).

Published: small 84.3, base 85.0, large 85.7 (with token labels) % top-1. Here: not yet run.
Settings follow the authors' scripts. The paper also trains with token labels, which this recipe
leaves out. The drop path rate is the variant's own.
Run: python -m vitlab.train --config=configs/spectformer_h_imagenet.py:small --workdir=...
  --config.data.data_dir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant="small"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"spectformerh_{variant}", dtype="bfloat16"),
            data=DataConfig(source="tfds", name="imagenet2012", train_split="train", eval_split="validation"),
            augment=AugmentConfig(crop="random_resized", policy="rand-m9-mstd0.5-inc1", erase_prob=0.25, repeats=3),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=1024,
            duration="310 epochs",
        )
    )
