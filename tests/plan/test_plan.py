"""A plan of a tiny model: its sums, whether it fits, and remedies that make it fit."""

import dataclasses

import pytest

from tests.train.conftest import config_file, tiny_experiment
from vitlab.config import ConfigError, DataConfig, DistillationConfig, LossConfig, MeshConfig, ModelConfig
from vitlab.data import open_source
from vitlab.plan.__main__ import main
from vitlab.plan.collectives import Collective, _group_size, collectives
from vitlab.plan.estimate import Plan, make_plan
from vitlab.plan.hlo import instructions, repeated_bytes
from vitlab.plan.program import Data, compile_program, out_of_memory
from vitlab.plan.remedies import numbers_of_parts
from vitlab.plan.topology import Topology, missing
from vitlab.runs import folder

V5E = Topology.of("v5e:2x2")
TINY = tiny_experiment()
HUGE = {  # one block, since the compiler is slow at such sizes
    "model": dataclasses.replace(TINY.model, fields={**TINY.model.fields, "depth": 1}),
    "batch_size": 2_400_000,
    "duration": "3 steps",
    "optimizer": dataclasses.replace(TINY.optimizer, warmup="1 steps"),
}


@pytest.fixture
def libtpu():
    if reason := missing("v5e"):
        pytest.skip(reason)


def weights(experiment) -> int:
    """Returns the number of elements of all parameters of `tiny_experiment`'s ViT."""
    d, tokens = 16, (28 // 14) ** 2 + 1
    block = 2 * 2 * d + (d + 1) * 4 * d + (d + 1) * 4 * d + (4 * d + 1) * d
    return 14 * 14 * d + d + d + tokens * d + 2 * block + 2 * d + (d + 1) * 10


def test_the_cpu_s_plan_adds_up_and_names_no_time():
    experiment = tiny_experiment()
    plan = make_plan(experiment, Topology.of("cpu"), Data.of(experiment))
    assert plan.memory["parameters"] == 4 * weights(experiment)
    assert plan.memory["optimizer"] == 2 * 4 * weights(experiment) + 8  # two moments, two counters
    assert plan.memory["batch"] == 16 * (28 * 28 + 4)
    assert plan.bytes == sum(plan.memory.values()) and plan.fits
    assert 0.5 * plan.model_flops < plan.flops < 2 * plan.model_flops
    assert plan.collectives == () and plan.step_seconds is None
    assert (plan.total_steps, plan.epochs) == (60, 15.0)


def test_a_teacher_counts_with_its_weights_and_one_forward_pass(tmp_path):
    experiment = tiny_experiment()
    info = folder.DataInfo.of(open_source(experiment.data, train=True))
    with folder.claim(tmp_path, experiment, info) as own:
        folder.write(own, experiment, info)
    taught = tiny_experiment(loss=LossConfig(distillation=DistillationConfig(teacher=str(tmp_path))))
    alone, plan = (make_plan(e, Topology.of("cpu"), Data.of(e)) for e in (experiment, taught))
    assert plan.memory["teacher"] == 4 * weights(experiment) and "teacher" not in alone.memory
    assert plan.memory["padding"] == alone.memory["padding"] and plan.bytes == sum(plan.memory.values())
    assert plan.model_flops == pytest.approx(alone.model_flops * 4 / 3)
    wrong = dataclasses.replace(taught, model=dataclasses.replace(taught.model, image_size=42))
    with pytest.raises(ConfigError, match=r"loss.distillation.teacher=.* has \(28, 28\) pixels"):
        make_plan(wrong, Topology.of("cpu"), Data.of(wrong))


@pytest.mark.tpu
def test_a_slice_splits_the_batch_and_adds_up_the_gradients(libtpu):
    experiment = tiny_experiment()
    plan = make_plan(experiment, V5E, Data.of(experiment))
    assert plan.memory["batch"] == 4 * (28 * 28 + 4)
    assert plan.memory["parameters"] == 4 * weights(experiment)  # every device has all parameters
    (reduction,) = plan.collectives
    assert reduction.kind == "all-reduce" and 4 * weights(experiment) <= reduction.bytes < 4 * weights(experiment) + 100
    assert plan.fits and plan.step_seconds == max(plan.bounds.values()) > 0


@pytest.mark.tpu
def test_devices_along_tensor_have_the_same_images_and_half_of_each_block(libtpu):
    experiment = tiny_experiment(mesh=MeshConfig(tensor=2))
    plan = make_plan(experiment, V5E, Data.of(experiment))
    d, tokens, images = 16, 5, 8
    halved = 2 * (d * 3 * d + d * d + d * 4 * d + 4 * d + 4 * d * d)  # two blocks without norms and without the biases that are added once
    assert plan.memory["parameters"] == 4 * (weights(experiment) - halved // 2)
    assert plan.memory["batch"] == images * (28 * 28 + 4)
    said = {c.kind: c for c in plan.collectives}
    sums = 2 * 4 * 4 * images * tokens * d  # activations of each block: two sums in the forward and two in the backward pass
    gradients = plan.memory["parameters"] - 2 * 4 * 3 * d // 2  # half of each projection's bias is gathered afterwards
    assert 0 <= said["all-reduce"].bytes - sums - gradients < 100  # the rest is a few scalars
    exchanged = said["all-to-all"].count  # each projection's kernel; newer compilers gather its gradient instead of exchanging it
    assert exchanged == 2 * 2 or (exchanged, said["all-gather"].count) == (2, 2 * 2)


@pytest.mark.tpu
def test_a_kernel_runs_on_every_device_of_a_slice(libtpu):
    fields = {"dims": (32,), "depths": (1,), "num_heads": (1,), "mixers": "window", "stem_stride": 4}
    experiment = tiny_experiment(model=ModelConfig(name="metaformer_nano", image_size=28, fields=fields))
    program = compile_program(experiment, Data.of(experiment), V5E)
    text = program.compiled.as_text()
    assert "window_attention_forward" in text and "window_attention_backward" in text
    assert {c.kind for c in collectives(instructions(text), 4)} == {"all-reduce"}  # no device fetches images of another


@pytest.mark.tpu
def test_what_does_not_fit_exits_with_3_and_says_what_would(libtpu, tmp_path, capsys):
    config = config_file(tmp_path, tiny_experiment(**HUGE))
    assert main([f"--config={config}", "--topology=v5e:2x2"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "DOES NOT FIT" in lines[2]
    assert lines[-1].startswith("with ") and "--config.accumulation=" in lines[-1] and lines[-1].endswith("would fit")


def test_the_command_tells_a_plan_of_what_is_compiled_here(tmp_path, capsys):
    assert main([f"--config={config_file(tmp_path, tiny_experiment())}", "--topology=h100x1"]) == 0
    out = capsys.readouterr().out
    assert "batch 16, on h100x1 (1 devices); compiled by the compiler of this CPU" in out
    assert "fits" in out and "at most" in out and "15 epochs of 64 images, 60 steps" in out


@pytest.mark.parametrize("name", ["v7", "v5e:16", "h100x0", "h100:8", "tpu"])
def test_an_unknown_topology_is_refused(name):
    with pytest.raises(ConfigError, match="topology"):
        Topology.of(name)


def test_topologies_are_counted_in_chips():
    assert [Topology.of(name).count for name in ("v5e:16x16", "v4:4x4x4", "v6e", "h100x8", "cpu")] == [256, 64, 4, 8, 1]


@pytest.mark.tpu
@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:2x1", "v5e:2x4", "v6e:1x1", "v5p:1x1x1", "v4:1x1x1", "v4:2x2x1"])
def test_a_slice_of_fewer_chips_than_a_host_can_be_planned(name, libtpu):
    topology = Topology.of(name)
    assert len(topology.devices()) == topology.count


@pytest.mark.tpu
def test_a_slice_that_does_not_exist_a_batch_that_does_not_divide_and_axes_that_do_not_fit_are_refused(libtpu):
    experiment = tiny_experiment()
    with pytest.raises(ConfigError, match="knows no slice v5e:3x3"):
        make_plan(experiment, Topology.of("v5e:3x3"), Data.of(experiment))
    with pytest.raises(ConfigError, match="multiple of the 256 devices"):
        make_plan(experiment, Topology.of("v5e:16x16"), Data.of(experiment))
    experiment = tiny_experiment(mesh=MeshConfig(fsdp=2, tensor=4))
    with pytest.raises(ConfigError, match="cannot be laid out with mesh.fsdp=2 and mesh.tensor=4"):
        make_plan(experiment, Topology.of("v4:2x2x4"), Data.of(experiment))


def test_known_datasets_are_planned_without_being_here():
    data = DataConfig(source="tfds", name="imagenet2012:5.1.0", train_split="train[:99%]", data_dir="/nowhere")
    assert Data.of(tiny_experiment(data=data)) == Data(examples=1_268_355, num_classes=1000, channels=3)
    with pytest.raises(ConfigError):
        Data.of(tiny_experiment(data=dataclasses.replace(data, name="unheard_of")))


PROGRAM = """
  %all-reduce.1 = (f32[]{:T(128)}, bf16[3,8]{1,0:T(8,128)(2,1)}, /*index=2*/f32[16]{0}) all-reduce(%a, %b, %c), channel_id=1
  %all-gather-start = (f32[4,2]{1,0:T(4,128)}, f32[16,2]{1,0:T(8,128)}) all-gather-start(%x), dimensions={0}
  %all-gather-done = f32[16,2]{1,0} all-gather-done(%all-gather-start)
  %reduce-scatter.2 = f32[4]{0} reduce-scatter(%y), channel_id=3, replica_groups={{0,1},{2,3}}
  %all-to-all = f32[2,4]{1,0} all-to-all(%z), channel_id=4, replica_groups=[1,4]<=[4]
  %collective-permute-start = (f32[5]{0}, f32[5]{0}, u32[]) collective-permute-start(%w), source_target_pairs={{0,2},{2,0}}
  %fusion = f32[4]{0} fusion(%reduce-scatter.2), calls=%all-reduce-like
"""


def test_collectives_are_read_from_the_program():
    assert collectives(instructions(PROGRAM), 8) == (  # among all eight devices, or in groups
        Collective("all-gather", 1, 16 * 2 * 4, 128 * 7 / 8),
        Collective("all-reduce", 1, 4 + 3 * 8 * 2 + 16 * 4, 116 * 7 / 4),
        Collective("all-to-all", 1, 2 * 4 * 4, 32 * 3 / 4),
        Collective("collective-permute", 1, 5 * 4, 20.0),
        Collective("reduce-scatter", 1, 4 * 4, 16.0),
    )


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3},{4,5}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2], device_ids=([2,2,2]T(1,0,2)) {'axis_0','axis_2'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(1)2}", 4),
        ("{}", None),
    ],
)
def test_the_devices_of_a_group_are_counted(groups, size):
    assert _group_size(f'%all-reduce = f32[4] all-reduce(%x), replica_groups={groups}, metadata={{op_name="a"}}') == size


LOOP = """%fused (a: f32[8,2], i: s32[]) -> f32[2] {
  %a = f32[8,2]{1,0:T(8,128)} parameter(0)
  ROOT %negate = f32[2]{0} negate(%a)
}

%body (carry: (s32[], f32[2], f32[8,2])) -> (s32[], f32[2], f32[8,2]) {
  %carry = (s32[], f32[2]{0}, f32[8,2]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %rows = f32[8,2]{1,0} get-tuple-element(%carry), index=2
  %row = f32[2]{0} fusion(%rows, %i), kind=kLoop, calls=%fused
  %all-reduce = f32[2]{0} all-reduce(%row), to_apply=%sum
  ROOT %next = (s32[], f32[2]{0}, f32[8,2]{1,0}) tuple(%i, %all-reduce, %rows)
}

%condition (carry: (s32[], f32[2], f32[8,2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %while = (s32[], f32[2]{0}, f32[8,2]{1,0}) while(%tuple), condition=%condition, body=%body
  %all-reduce.1 = f32[4]{0} all-reduce(%y), to_apply=%sum
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    program = instructions(LOOP)
    assert collectives(program, 4) == (Collective("all-reduce", 9, 8 * 2 * 4 + 4 * 4, 80 * 6 / 4),)
    assert repeated_bytes(program) == 7 * ((8 + 8 + 4) + (8 + 8))  # one of eight rows per trip, the index, the results
    said = LOOP.replace("body=%body", """body=%body, backend_config={"known_trip_count":{"n":"5"}}""")
    assert collectives(instructions(said), 4)[0].count == 6
    # An unknown number of trips counts as one.
    assert collectives(instructions(LOOP.replace("constant(8)", "parameter(0)")), 4)[0].count == 2


def test_a_plan_of_blocks_in_a_loop_is_that_of_blocks_in_turn():
    experiment = tiny_experiment()
    shape = {"depth": 6, "dim": 64}
    plans = {}
    for scan in (False, True):
        model = dataclasses.replace(experiment.model, fields={**experiment.model.fields, **shape, "scan_blocks": scan})
        one = dataclasses.replace(experiment, model=model)
        plans[scan] = make_plan(one, Topology.of("cpu"), Data.of(one))
    # Products in a loop are counted, element-wise operations are not. The loop's parameters are
    # moved once more, to be stacked.
    assert plans[True].flops == pytest.approx(plans[False].flops, rel=0.2)
    assert plans[True].bytes_accessed == pytest.approx(plans[False].bytes_accessed, rel=0.5)


def test_the_compiler_s_refusal_is_read():
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (29.50G) exceeds available"
    assert out_of_memory(message) == 29.5 * 2**30
    assert out_of_memory("INVALID_ARGUMENT: no") is None


def test_the_number_of_parts_begins_where_the_activations_would_fit():
    plan = make_plan_of(memory={"parameters": 2**30, "batch": 2**20, "activations": 40 * 2**30}, batch_size=256)
    assert numbers_of_parts(plan, 4) == [4, 8, 16]
    assert numbers_of_parts(dataclasses.replace(plan, batch_size=4), 4) == []  # a device would have no whole image
    assert numbers_of_parts(dataclasses.replace(plan, memory={"parameters": 2**40, "activations": 1}), 4) == []


def make_plan_of(**changes) -> Plan:
    known = {"model": "m", "topology": V5E, "compile_seconds": 0.0, "model_flops": 1.0, "flops": 1.0, "bytes_accessed": 1.0}
    run = {"collectives": (), "total_steps": 1, "epochs": 1.0, "examples": 1}
    return Plan(**known, **run, **changes)
