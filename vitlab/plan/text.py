"""A plan as text for a person to read."""

from vitlab.plan.estimate import Plan
from vitlab.plan.remedies import Trial
from vitlab.train.clock import duration_text

_UNITS = {"bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")), "flops": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))}


def describe(plan: Plan) -> str:
    """The lines of a plan."""
    topology, device = plan.topology, plan.topology.device
    how = "by its own compiler" if topology.is_exact else "by the compiler of this CPU, without fused kernels: an estimate"
    used = f"{quantity(plan.bytes)} of {quantity(device.memory_bytes)}: {'fits' if plan.fits else 'DOES NOT FIT'}"
    lines = [
        f"{plan.model}, batch {plan.batch_size:,}, on {topology.name} ({topology.count} devices); compiled {how}",
        "memory of a device   " + ", ".join(f"{part} {quantity(size)}" for part, size in plan.memory.items()),
        f"                     {used}",
    ]
    if plan.flops is None or plan.bytes_accessed is None:
        return "\n".join([*lines, "the compiler refuses it, so that no more is known"])
    said = ", ".join(f"{c.count} {c.kind} {quantity(c.bytes)}" for c in plan.collectives) or "none"
    counted = f"{quantity(plan.flops, 'flops')} ({quantity(plan.model_flops, 'flops')} without recomputation, kernels included)"
    lines += [f"work of a step       {counted}, {quantity(plan.bytes_accessed)} of memory traffic", f"collectives          {said}"]
    return "\n".join([*lines, *_times(plan)])


def _times(plan: Plan) -> list[str]:
    run = f"{plan.epochs:.4g} epochs of {plan.examples:,} images, {plan.total_steps:,} steps"
    seconds = plan.step_seconds
    if seconds is None:
        return [f"run                  {run}; no peak is published for a CPU: measure with python -m vitlab.benchmark --train"]
    bounds = ", ".join(f"{name} {1000 * value:.3g}" for name, value in plan.bounds.items())
    utilization = plan.model_flops / seconds / (plan.topology.device.flops_per_second or 1)
    return [
        f"step                 at least {1000 * seconds:.3g} ms ({bounds}): at most {plan.batch_size / seconds:,.0f} images/s, "
        f"{utilization:.0%} of the peak",
        f"run                  {run}: {duration_text(plan.total_steps * seconds)} of training at that speed",
    ]


def describe_trial(trial: Trial) -> str:
    """One line: what was tried and whether it fits."""
    flags = " ".join(f"--config.{key}={value}" for key, value in trial.overrides.items())
    plan = trial.plan
    verdict = "would fit" if plan.fits else "does not fit either"
    return f"with {flags}: {quantity(plan.bytes)} of {quantity(plan.topology.device.memory_bytes)}, {verdict}"


def quantity(value: int | float, unit: str = "bytes") -> str:
    """A size with a unit: 1.5 GiB, 3.2 TFLOP."""
    size, name = next((pair for pair in _UNITS[unit] if value >= pair[0]), _UNITS[unit][-1])
    return f"{value / size:.3g} {name}"
