"""Shrinks an experiment to a smoke test."""

import dataclasses

from vitlab.config.experiment import DistillationConfig, Experiment, MeshConfig

_SIDE = 48  # largest side of the images, in pixels
_SCENE = 64  # pixels on a side of a scene


def smoke(experiment: Experiment) -> Experiment:
    """The experiment reduced to 2 steps of 4 images of at most 48 pixels a side, scenes of 64.

    Computation is in float32, data is bundled or composed from it, and there is no teacher.
    """
    replace, classes = dataclasses.replace, experiment.task.name == "classification"
    most = _SIDE if classes else _SCENE
    size = experiment.model.image_size or most
    size = min(size, most) if isinstance(size, int) else (min(size[0], most), min(size[1], most))
    source = "bundled" if classes else "scenes"
    data = replace(experiment.data, source=source, data_dir=None, name=None, train_split="train", eval_split="test[:8]", more_sources=())
    return replace(
        experiment,
        model=replace(experiment.model, dtype="float32", image_size=size),
        data=replace(data, num_workers=0, num_threads=1),
        optimizer=replace(experiment.optimizer, warmup="1 steps", cooldown="0 steps"),
        loss=replace(experiment.loss, distillation=DistillationConfig()),  # a teacher expects its own classes and image size
        mesh=MeshConfig(),
        batch_size=4,
        accumulation=min(experiment.accumulation, 2),
        eval_batch_size=4,
        duration="2 steps",
        log_every="1 steps",
        eval_every="2 steps",
        checkpoint_every="2 steps",
    )
