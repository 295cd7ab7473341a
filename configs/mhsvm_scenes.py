"""MHS-VM on the bundled scenes of 64 x 64 pixels, eleven classes.

The authors train on ISIC18, of one class, for 300 epochs of 256 x 256 pixels with batches of 32,
AdamW at 1e-3 and cross-entropy plus Dice. Published there with 4 heads (mhsvm_h4): mIoU 80.9 %.
Here: not yet run.
Run: python -m vitlab.train --config=configs/mhsvm_scenes.py --workdir=runs/mhsvm
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, ModelConfig, OptimizerConfig, TaskConfig, to_config_dict


def get_config(variant="h4"):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=f"mhsvm_{variant}", image_size=64),
            # A pixel shuffle to the image's size is what the authors' last patch expansion is.
            task=TaskConfig(name="segmentation", fields={"head": "pixel_shuffle", "head_options": {"dim": 96}, "dice_weight": 1.0}),
            data=DataConfig(source="scenes"),
            augment=AugmentConfig(crop="center"),
            optimizer=OptimizerConfig(peak_lr=1e-3, end_lr=1e-5, warmup="0 steps", weight_decay=1e-2),
            batch_size=32,
            duration="2000 steps",
            log_every="100 steps",
            eval_every="500 steps",
            eval_batch_size=100,
            checkpoint_every="500 steps",
        )
    )
