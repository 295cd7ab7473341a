"""A small ViT on the bundled Fashion-MNIST subset: minutes on two CPU cores.

Patches of 7 pixels make 16 tokens, so that steps are cheap: on a CPU and on 10,000 images the
accuracy depends on the number of steps.

Here: see the README for the accuracy over three seeds.
Run: python -m vitlab.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="vit_tiny_patch16",
                image_size=28,
                drop_path_rate=0.05,
                fields={"patch_size": 7, "dim": 64, "depth": 4, "num_heads": 2, "pool": "mean"},
            ),
            data=DataConfig(source="bundled"),
            augment=AugmentConfig(crop="pad", pad=1),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup="1 epochs", weight_decay=0.05),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=64,
            duration="36 epochs",
            log_every="1 epochs",
            eval_every="4 epochs",
            eval_batch_size=500,
            checkpoint_every="4 epochs",
        )
    )
