"""MorpMamba on small patches for 50 epochs, after the authors' notebook (arXiv:2408.01372).

The notebook takes 15 principal components of the University of Houston's hyperspectral image in
patches of 4 x 4 pixels, a source of one's own here (`data.source=./own.py:name`); this recipe runs
on the bundled images, 8 x 8 pixels of one channel. Here: not yet run.
Run: python -m vitlab.train --config=configs/morpmamba_patches.py --workdir=...
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(name="morpmamba_houston", image_size=8),
            data=DataConfig(source="bundled"),
            augment=AugmentConfig(crop="center", flip=False),
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup="0 steps", weight_decay=0.0, clip_norm=None),
            batch_size=256,
            duration="50 epochs",
            eval_batch_size=500,
        )
    )
