"""Any model on your own pictures: a folder with one folder per class.

A fixed random 10 % of the pictures are for evaluation. Here: see the README.
Variants: FOLDER, FOLDER,MODEL or FOLDER,MODEL,WEIGHTS; FOLDER and WEIGHTS may contain commas. With
weights (timm's or the authors': a .safetensors or .pth file, or hf://owner/name) the head starts
from new values and lower blocks learn more slowly; without weights, everything starts anew.
Run: python -m vitlab.train
  --config=configs/finetune_folder.py:/path/to/images,vit_tiny_patch16,weights.safetensors
  --workdir=...
"""

import os
import re

from vitlab.config import (
    AugmentConfig,
    DataConfig,
    Experiment,
    LossConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    near_misses,
    to_config_dict,
)
from vitlab.models.registry import list_models

DEFAULT = "vit_tiny_patch16"
_OWN_MODEL = re.compile(r"[\w./]+:\w+")  # package.module:name or ./file.py:name


def split_variant(variant: str) -> tuple[str, str, str | None]:
    """Returns folder, model and weights.

    Paths may contain commas: the first part after a comma that names a model separates the two
    paths.
    """
    parts, models = variant.split(","), set(list_models())
    for place, part in enumerate(parts[1:], 1):
        if part in models or _OWN_MODEL.fullmatch(part):
            return ",".join(parts[:place]), part, ",".join(parts[place + 1 :]) or None
    if len(parts) > 1 and parts[1].isidentifier() and not os.path.isdir(os.path.expanduser(variant)):
        raise ValueError(f'"{parts[1]}" is no model ({near_misses(parts[1], models)}), and {variant} is no folder')
    return variant, DEFAULT, None


def get_config(variant="images"):
    folder, name, weights = split_variant(variant)
    return to_config_dict(
        Experiment(
            model=ModelConfig(name=name, weights=weights, drop_path_rate=0.1),
            data=DataConfig(source="image_folder", data_dir=folder, train_split="train[:90%]", eval_split="train[90%:]"),
            augment=AugmentConfig(crop_scale=(0.3, 1.0), policy="rand-m9-mstd0.5-inc1"),
            mix=MixConfig(mixup_alpha=0.2, prob=0.5),
            # The learning rate and layer-wise decay are BEiT's for fine-tuning (arXiv:2106.08254,
            # appendix), scaled to the batch.
            optimizer=OptimizerConfig(peak_lr=5e-4, warmup="10 percent", weight_decay=0.05, layer_decay=0.75 if weights else 1.0),
            loss=LossConfig(label_smoothing=0.1),
            batch_size=64,
            duration="30 epochs",
            ema_decay=0.998,
            log_every="20 steps",
            eval_every="5 epochs",
        )
    )
