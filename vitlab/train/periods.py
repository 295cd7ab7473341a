"""The durations of an experiment in steps."""

import dataclasses

from vitlab.config import ConfigError, Experiment, duration_in_steps

LAST_STEP = 2**31 - 1  # the devices count steps in an int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Periods:
    """Durations and periods of a run, in steps; periods are at least 1."""

    total: int
    warmup: int
    log: int
    evaluate: int
    save: int
    cooldown: int = 0  # steps at the schedule's end
    decay_every: int = 1  # period of the "step" schedule, timescale of "rsqrt"
    keep: int | None = None  # period of checkpoints that are kept for good; None: none are
    patience: int | None = None  # steps without a better evaluation after which the run ends; None: never
    examples_per_epoch: int | None = None  # training images; None: not known, so that records have no epoch

    @classmethod
    def of(cls, experiment: Experiment, *, examples_per_epoch: int) -> "Periods":
        """The periods of an experiment on this many images.

        Raises:
          ConfigError: The run is shorter than a step or than its warm-up, or has more steps than
            can be counted.
        """

        def steps(text: str, total: int | None) -> int:
            return duration_in_steps(text, batch_size=experiment.batch_size, examples_per_epoch=examples_per_epoch, total_steps=total)

        total = steps(experiment.duration, None)
        warmup = steps(experiment.optimizer.warmup, total)
        if total < 1:
            raise ConfigError(
                f'duration="{experiment.duration}" is less than one step of batch_size={experiment.batch_size} '
                f"on {examples_per_epoch} images"
            )
        if total > LAST_STEP:
            raise ConfigError(f'duration="{experiment.duration}" is {total:,} steps, and must be at most {LAST_STEP:,}')
        cooldown, decay_every = (steps(text, total) for text in (experiment.optimizer.cooldown, experiment.optimizer.decay_every))
        if warmup + cooldown > total:
            raise ConfigError(
                f'optimizer.warmup="{experiment.optimizer.warmup}" and cooldown="{experiment.optimizer.cooldown}" are '
                f"{warmup + cooldown} steps, the whole run only {total}"
            )
        often = (
            min(max(steps(text, total), 1), LAST_STEP)
            for text in (experiment.log_every, experiment.eval_every, experiment.checkpoint_every)
        )
        log, evaluate, save = often
        keep, patience = (None if text is None else max(steps(text, total), 1) for text in (experiment.keep_every, experiment.stop_after))
        recurring = {"log": log, "evaluate": evaluate, "save": save, "keep": keep, "patience": patience}
        return cls(
            total=total, warmup=warmup, cooldown=cooldown, decay_every=decay_every, examples_per_epoch=examples_per_epoch, **recurring
        )

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation follows this step; it does beyond the end of a shortened run."""
        return step > 0 and (step % self.evaluate == 0 or step >= self.total)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return step % self.save == 0 or step >= self.total
