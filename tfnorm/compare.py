"""Trains one network under several normalizers: python -m tfnorm.compare --norms=bn,brn,gn.

Each norm trains on small batches of several replicas, beside batch normalization on the whole batch
as the reference; --study names other experiments. --distribution_strategy says where the replicas
stand: on devices of their own, on those of several workers that all run this command with TF_CONFIG
and one --output_dir, or virtually on one device. Then there are a table, plots, and the best
foldable model as a SavedModel. Runs that are in --output_dir already are not made again.
"""

import sys
from collections.abc import Mapping, Sequence

from absl import flags

from tfnorm import commands, locks, paths, training
from tfnorm.files import removed_if_empty
from tfnorm.layers import norms
from tfnorm.study import extras, placing, running
from tfnorm.study.results import Results
from tfnorm.training import flags as training_flags
from tfnorm.training import options, strategies, workers
from tfnorm.training.config import STRATEGIES

# Fields of training.Config that the comparison sets itself, so that they are no flags here.
_ITS_OWN = (
    "norm", "norm_options", "virtual_replicas", "seed", "distribution_strategy", "num_replicas",
    "resume", "model_dir",
)  # fmt: skip

_WORKERS = "multi_worker_mirrored"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(define_flags, _compare, argv)


def define_flags() -> flags.FlagValues:
    """The flags of the command."""
    extras.check()  # or the next import ends in a traceback
    from tfnorm.study import grids

    values = training_flags.define()
    for name in _ITS_OWN:
        delattr(values, name)
    flags.DEFINE_string(
        "study",
        "compare",
        f"The experiment: {', '.join(grids.STUDIES)}. It has defaults of its own for the flags "
        "below and those of the trainer.",
        flag_values=values,
    )
    flags.DEFINE_bool("quick", False, "A small version of a study, in minutes.", flag_values=values)
    flags.DEFINE_list(
        "norms", None, f"Some of {', '.join(norms.NAMES)} (the study's).", flag_values=values
    )
    flags.DEFINE_enum(
        "distribution_strategy",
        None,
        STRATEGIES,
        "Where the replicas stand; with one_device they are virtual (the study's).",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_replicas", 1, "Replicas of a run, those of all workers together.", flag_values=values
    )
    flags.DEFINE_list("seeds", ["0", "1"], "Each norm has a run for each.", flag_values=values)
    flags.DEFINE_string(
        "output_dir",
        None,
        "Where results, plots and models go (runs/ and the study's name).",
        flag_values=values,
    )
    return values


def _compare(values: flags.FlagValues) -> None:
    from tfnorm.study import grids, report

    study = grids.get(values.study)
    if values.quick:
        study = grids.quick(study)
        if values["seeds"].using_default_value:
            values.seeds = ["0"]
    for name, default in study.defaults.items():
        if values[name].using_default_value:
            is_mapping = isinstance(default, Mapping)
            values[name].value = options.in_words(default) if is_mapping else default
    chief = _start(values)
    fields = training_flags.fields(values)
    base = training.Config(**{**fields, "distribution_strategy": "mirrored", "tpu": ""})
    compared = study.norms if values.norms is None else values.norms
    grid = study.build(compared, commands.whole_numbers(values.seeds, "seeds"), base)
    if values.tpu and not values.distribution_strategy:
        values.distribution_strategy = "tpu"
    if values.distribution_strategy:
        among = placing.workers() if values.distribution_strategy == _WORKERS else 1
        grid = placing.place(grid, values.distribution_strategy, values.tpu, among)
    quick = "-quick" if values.quick else ""
    default = f"runs/{values.study}{quick}"
    output = paths.local(default if values.output_dir is None else values.output_dir, "output_dir")
    with removed_if_empty(output):
        # Before hours of training whose results could not be written.
        paths.make_writable(output, "output_dir", "choose another")
        if not chief:
            results = Results(output / "results.jsonl")
            running.take_part(grid, results, output / "models")
            return
        with locks.hold(output, "output_dir", _tell):
            results = Results(output / "results.jsonl")
            _tell(grid.title)
            records = running.run(grid, results, output / "models", _tell)
            if study.chapter:
                report.chapter(grid, study.chapter, results, output, _tell)
            else:
                report.comparison(grid, records, output, _tell)


def _start(values: flags.FlagValues) -> bool:
    """Sets up TensorFlow's devices before anything uses them; returns whether this is the chief."""
    if values.distribution_strategy != _WORKERS:
        strategies.prepare_cpu_devices(values.num_replicas)
        return True
    each = values.num_replicas // placing.workers()
    config = training.Config(distribution_strategy=_WORKERS, num_replicas=max(each, 1))
    return workers.is_chief(strategies.create(config))


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
