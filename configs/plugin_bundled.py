"""A plug-in module after each block of a small trunk, on the bundled Fashion-MNIST subset.

Any hierarchical family takes one: plugin=ulsam, with plugin_stages=(2,) in the third stage alone,
or plugin=./own.py:Gate. Here: not yet run; experiments/02_mixer_swap/run.py --plugins compares all.
Run: python -m vitlab.train --config=configs/plugin_bundled.py --workdir=...
  --config.model.plugin=ela
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="metaformer_nano",
                image_size=28,
                drop_path_rate=0.05,
                # Pooling mixes without weights, so that what a plug-in adds is not found twice.
                fields={"mixers": "pooling", "stem_stride": 2, "plugin": "ela"},
            ),
            data=DataConfig(source="bundled"),
            augment=AugmentConfig(crop="pad", pad=1),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup="1 epochs", weight_decay=0.05),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=64,
            duration="10 epochs",
            log_every="1 epochs",
            eval_every="5 epochs",
            eval_batch_size=500,
            checkpoint_every="5 epochs",
        )
    )
