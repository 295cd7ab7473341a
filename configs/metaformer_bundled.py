"""Any token mixer in one small trunk, on the bundled Fashion-MNIST subset.

Mechanisms can be compared with everything else equal. Here: not yet compared.
Run: python -m vitlab.train --config=configs/metaformer_bundled.py --workdir=...
  --config.model.mixers=hilo,hilo,global,global
"""

from vitlab.config import AugmentConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimizerConfig, to_config_dict


def get_config(variant=None):
    return to_config_dict(
        Experiment(
            model=ModelConfig(
                name="metaformer_nano",
                image_size=28,
                drop_path_rate=0.05,
                fields={"mixers": "window,window,global,global", "stem_stride": 2},
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
