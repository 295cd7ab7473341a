"""Blocks split over a mesh axis `tensor`: equal numbers, split parameters, known collectives."""

import numpy as np
import pytest

from tests.processes import run_on_four_devices
from vitlab.config import ConfigError, ModelConfig
from vitlab.functional import build, check_tensor
from vitlab.parallel.mesh import parts_of_batch

BEGIN = """
    import dataclasses, pathlib, sys
    import jax, jax.numpy as jnp, numpy as np
    from tests.train.conftest import tiny_experiment
    from vitlab.config import ConfigError, MeshConfig, ModelConfig
    from vitlab.plan.collectives import collectives
    from vitlab.plan.hlo import instructions
    from vitlab.runs.checkpoint import Checkpoints
    from vitlab.functional import build
    from vitlab.parallel.mesh import make_mesh, place, shard_batch
    from vitlab.tree import leaf_names
    from vitlab.train.setup import set_up

    DIM, MLP_DIM, TOKENS, BATCH = 128, 512, 5, 16
    TOLERANCE = 1e-4  # sums are taken in another order; measured 5e-7
"""

VIT = """
    MODEL = ModelConfig(name="vit_tiny_patch16", image_size=28, fields=dict(patch_size=14, dim=DIM, depth=1, num_heads=4))
    EXPERIMENT = tiny_experiment(model=MODEL, log_every="1 steps", eval_batch_size=20)

    def run(**axes):
        setup = set_up(dataclasses.replace(EXPERIMENT, mesh=MeshConfig(**axes)))
        step, state, losses = setup.train_step.lower().compile(), setup.initial_state(), []
        with setup.open_train_batches(0) as batches:
            for _ in range(6):
                state, metrics = step(state, shard_batch(next(batches), setup.mesh))
                losses.append(float(metrics["loss"]))
        return setup, state, step.as_text(), losses

    def parts(state, end):
        # The shape of a device's part of each array of such a name: parameter and both moments.
        found = {x.sharding.shard_shape(x.shape) for name, x in zip(leaf_names(state), jax.tree.leaves(state)) if name.endswith(end)}
        assert len(found) == 1, found
        return found.pop()

    runs = {axes: run(fsdp=axes[1], tensor=axes[2]) for axes in ((4, 1, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4))}
    for axes, (setup, state, text, losses) in runs.items():
        np.testing.assert_allclose(losses, runs[4, 1, 1][-1], rtol=0, atol=TOLERANCE)
        _, f, t = axes
        assert setup.mesh.devices.shape == axes
        assert parts(state, "attn/qkv/kernel") == parts(state, "attn/proj/kernel")[:1] + (3 * DIM,) == (DIM // t, 3 * DIM)
        assert parts(state, "mlp/fc1/kernel") == (DIM // f, MLP_DIM // t) and parts(state, "mlp/fc1/bias") == (MLP_DIM // t,)
        assert parts(state, "mlp/fc2/kernel") == (MLP_DIM // t, DIM // f) and parts(state, "mlp/fc2/bias") == (DIM,)

    setup, state, text, _ = runs[1, 1, 4]
    said = {c.kind: c for c in collectives(instructions(text), 4)}
    assert said.keys() == {"all-gather", "all-reduce", "all-to-all"}
    assert said["all-gather"].bytes == 4 * 3 * DIM  # the gradient of the projection's bias
    assert (said["all-to-all"].count, said["all-to-all"].bytes) == (2, 2 * 4 * 3 * DIM * DIM // 4)  # of its kernel, and the gradient's
    assert 0 <= said["all-reduce"].bytes - 4 * 4 * BATCH * TOKENS * DIM < 100  # activations, two forward, two backward; and numbers

    for number, (saved, wanted) in enumerate([((1, 1, 4), (4, 1, 1)), ((4, 1, 1), (1, 1, 4)), ((1, 1, 4), (1, 2, 2))]):
        with Checkpoints(pathlib.Path(sys.argv[1], str(number))) as checkpoints:
            checkpoints.save_last(6, runs[saved][1])
            target = runs[wanted][0].abstract_state
            step, state = checkpoints.restore(target)
        assert step == 6
        jax.tree.map(np.testing.assert_array_equal, state, runs[saved][1])
        assert all(x.sharding == wish.sharding for x, wish in zip(jax.tree.leaves(state), jax.tree.leaves(target)))

    assert runs[1, 2, 2][0].evaluate(runs[1, 2, 2][1], lambda: False)["images"] == 50
    factored = dataclasses.replace(EXPERIMENT.optimizer, name="adafactor")
    set_up(dataclasses.replace(EXPERIMENT, optimizer=factored, mesh=MeshConfig(tensor=2))).initial_state()
    try:
        set_up(dataclasses.replace(EXPERIMENT, batch_size=15, mesh=MeshConfig(tensor=2)))
        assert False
    except ConfigError as error:
        assert "batch_size=15 must be a multiple of the 2 groups of mesh.tensor=2 devices, such as 14" in str(error), error
"""

SWIN = """
    fields = dict(dim=32, depths=(2, 1), num_heads=(2, 4), window_size=3)
    model, create = build(ModelConfig(name="swin_tiny", image_size=28, fields=fields), num_classes=10, channels=1, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)

    def loss(params, images):
        return jnp.square(model.apply({"params": params, "model_state": {}}, images)[0]).mean()

    weights = jax.tree.map(np.asarray, create())["params"]
    one = jax.jit(jax.value_and_grad(loss))(weights, images)
    mesh = make_mesh(tensor=2)
    placed = place(weights, mesh, model.tensor_split)
    with jax.set_mesh(mesh):
        split = jax.jit(jax.value_and_grad(loss))(placed, shard_batch({"image": images}, mesh)["image"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=1e-5), one, split)
    block = placed["layers"][1]["blocks"][0]
    assert block["mlp"]["fc1"]["kernel"].addressable_data(0).shape == (64, 128)
    assert block["attn"]["rel_pos_bias"].addressable_data(0).shape == (2, 5, 5)
"""


def test_a_vit_split_in_any_way_has_one_loss_one_checkpoint_and_sums_but_activations(tmp_path):
    run_on_four_devices(BEGIN + VIT, str(tmp_path))


def test_a_swin_that_is_split_has_the_gradients_of_one_device():
    run_on_four_devices(BEGIN + SWIN)


@pytest.mark.parametrize(
    ("tensor", "name", "fields", "words"),
    [
        (2, "metaformer_nano", {}, "mesh.tensor=2 must be 1: the family of metaformer_nano does not say how to split it; mesh.fsdp splits"),
        (2, "vit_tiny_patch16", {}, "mesh.tensor=2 must divide num_heads=3 of vit_tiny_patch16; mesh.fsdp splits the parameters of any"),
        (6, "swin_tiny", {}, r"mesh.tensor=6 must divide num_heads=\(3, 6, 12, 24\) of swin_tiny"),
        (3, "vit_tiny_patch16", {"mlp_ratio": 0.5, "dim": 51}, r"mesh.tensor=3 must divide the 25 of blocks/0/mlp/fc1/bias, \[25\]"),
    ],
)
def test_a_model_that_cannot_be_split_so_is_refused(tensor, name, fields, words):
    config = ModelConfig(name=name, fields=fields)
    model, _ = build(config, num_classes=10, channels=3, seed=0)
    check_tensor(1, config, model)
    with pytest.raises(ConfigError, match=words):
        check_tensor(tensor, config, model)


@pytest.mark.parametrize(
    ("processes", "parts"),
    [
        ([[0], [0], [1], [1]], {0: 0, 1: 1}),
        ([[0, 0], [1, 1]], {0: 0, 1: 1}),
        ([[0, 1], [2, 3]], {0: 0, 1: 0, 2: 1, 3: 1}),
        ([[0, 1], [0, 1]], {0: 0, 1: 0}),  # as on a TPU, where a row of the slice crosses two hosts
    ],
)
def test_processes_with_devices_of_the_same_images_read_the_same_part(processes, parts):
    assert parts_of_batch(np.array(processes)) == parts


@pytest.mark.parametrize(
    "processes",
    [
        [[0, 0, 1], [1, 2, 2]],
        [[0, 1], [1, 2], [2, 0]],
        [[0, 1], [0, 1], [2, 2]],  # two processes of two parts, one of one
    ],
)
def test_processes_whose_parts_of_the_batch_would_overlap_or_differ_in_size_are_refused(processes):
    tensor = len(processes[0])
    with pytest.raises(ConfigError, match=f"mesh.tensor={tensor} must divide the 2 devices of a process, or be a multiple of them"):
        parts_of_batch(np.array(processes))
