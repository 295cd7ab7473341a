"""A small ViT on CIFAR-10, read through TFDS from array_record files.

The recipe is a second real run for a machine of two cores. Here: see the README. The data set must
be prepared by `tensorflow_datasets` with `file_format="array_record"`.
Run: python -m vitlab.train --config=configs/vit_cifar10.py --workdir=...
  --config.data.data_dir=... [--config.data.name=cifar10]
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="vit_tiny_patch16",
                image_size=32,
                drop_path_rate=0.05,
                fields={"patch_size": 4, "dim": 64, "depth": 4, "num_heads": 2, "pool": "mean"},
            ),
            data=DataConfig(source="tfds", name="cifar10_jpeg", train_split="train", eval_split="test"),
            augment=AugmentConfig(crop="pad", pad=4),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup="1 epochs", weight_decay=0.05),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=128,
            duration="12 epochs",
            log_every="100 steps",
            eval_every="2 epochs",
            eval_batch_size=500,
            checkpoint_every="1 epochs",
        )
    )
