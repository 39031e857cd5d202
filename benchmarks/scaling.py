"""What synchronized statistics cost on more and more replicas: measured here, modelled beyond.

Measured: the training step of a network under bn (no communication but the gradients'), mabn and
syncbn, on logical CPU devices of this machine and on local worker processes, with the collectives
and bytes that normalization adds, as counted in the traced step. All replicas share this machine's
cores, so a step grows with their number under every norm; what tells is the difference to bn.

Modelled: the time of the same collectives on N accelerators, by the formulas of
benchmarks.all_reduce, with the latency and the bandwidth of --latency_us and --bandwidth_gbs. It
knows nothing of overlap with computation: each collective of normalization is waited for.

    python -m benchmarks.scaling [--replicas=1,2,4,8] [--workers=1,2] [--norms=bn,mabn,syncbn]
        [--latency_us=5] [--bandwidth_gbs=25] [--step_ms=100] [--worth=0.1]
        [--output=results/scaling.json] [--plot=results/scaling.png]
"""

import dataclasses
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

from benchmarks import measuring, scaling_report
from benchmarks.all_reduce import ALGORITHMS, Link, Payload
from benchmarks.scaling_report import Modelled, Point
from tfnorm import commands, tasks, training
from tfnorm.errors import RunError, UserError
from tfnorm.training import local_cluster, strategies, workers
from tfnorm.training.trainer import Trainer
from tfnorm.version import versions

_BASELINE, _SYNCHRONIZED = "bn", "syncbn"
_MODELLED = tuple(2**k for k in range(3, 11))  # 8 ... 1,024


def measure(norms: Sequence[str], base: training.Config, rounds: int) -> list[Point]:
    """Times a step of each norm in turn, on the replicas of `base`.

    Args:
        norms: names of norms.
        base: all but the norm; `steps_per_loop` steps are one measurement.
        rounds: how often each is timed.
    """
    strategy = strategies.create(base)
    task = tasks.load(base)
    trainers, functions = {}, {}
    for norm in norms:
        trainer = Trainer(dataclasses.replace(base, norm=norm), task, strategy)
        trainers[norm], functions[norm] = trainer, _steps(trainer)
        functions[norm]()  # Traces, which takes long: each norm's before any is timed.
    figures = measuring.interleave(functions, norms[0], rounds, warmup=1)
    local = len(strategy.extended.worker_devices)
    several = base.distribution_strategy == "multi_worker_mirrored"
    return [
        Point(
            norm,
            strategy.num_replicas_in_sync // local if several else 0,
            strategy.num_replicas_in_sync,
            figures[norm].milliseconds / base.steps_per_loop,
            figures[norm].ratio,
            figures[norm].quartiles,
            tuple(trainers[norm].payloads),
        )
        for norm in norms
    ]


def _steps(trainer: Trainer):
    """A function without arguments that makes some steps, through epoch after epoch."""
    count = trainer.config.steps_per_loop
    loops = trainer.steps_per_epoch // count
    if not loops:
        raise UserError(f"an epoch has fewer than steps_per_loop={count} steps; choose fewer")
    iterators = (trainer.epoch_iterator(epoch, 0) for epoch in itertools.count())
    batches = itertools.chain.from_iterable(itertools.repeat(i, loops) for i in iterators)
    return lambda: trainer.train_steps(next(batches), count)


def payloads(points: Sequence[Point]) -> list[Payload]:
    """How the collectives of a norm grow with the replicas, from the two least numbers above 1.

    Raises:
        UserError: There are not two, or a third point does not lie on the line through them.
    """
    several = {p.replicas: p.payloads for p in points if p.replicas > 1}
    if len(several) < 2:
        raise UserError("the model needs syncbn measured on two numbers of replicas above 1")
    (first, a), (second, b), *others = sorted(several.items())
    found = [Payload.through((first, x), (second, y)) for x, y in zip(a, b, strict=True)]
    for replicas, sizes in others:
        if any(p.size(replicas) != size for p, size in zip(found, sizes, strict=True)):
            raise RunError(f"payloads of {replicas} replicas do not follow from those of fewer")
    return found


def modelled(sizes: Sequence[Payload], values: flags.FlagValues) -> Modelled:
    """The collectives of a step on accelerators, from how they grow and the flags."""
    link = Link(values.latency_us * 1e-6, values.bandwidth_gbs * 1e9)
    return Modelled(
        values.latency_us,
        values.bandwidth_gbs,
        values.step_ms,
        values.worth,
        len(sizes),
        {n: sum(p.size(n) for p in sizes) for n in _MODELLED},
        {
            name: {n: 1e3 * sum(seconds(link, n, p.size(n)) for p in sizes) for n in _MODELLED}
            for name, seconds in ALGORITHMS.items()
        },
    )


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=20)
    measuring.define_numbers(values, "replicas", ["1", "2", "4", "8"], "Logical devices.")
    measuring.define_numbers(values, "workers", ["1", "2"], "Local processes, a replica each.")
    flags.DEFINE_list("norms", [_BASELINE, "mabn", _SYNCHRONIZED], "Norms.", flag_values=values)
    flags.DEFINE_string("model", "resnet8", "The network.", flag_values=values)
    flags.DEFINE_integer("width", 16, "Channels of its first stage.", flag_values=values)
    flags.DEFINE_integer("images", 2, "Images of a replica.", flag_values=values)
    flags.DEFINE_integer("steps_per_loop", 10, "Steps of one measurement.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Of prepared TFDS data sets.", flag_values=values)
    flags.DEFINE_float("latency_us", 5.0, "Model: latency, microseconds.", flag_values=values)
    flags.DEFINE_float("bandwidth_gbs", 25.0, "Model: bandwidth, 1e9 bytes/s.", flag_values=values)
    flags.DEFINE_float(
        "step_ms", 100.0, "Model: an accelerator's step without SyncBN.", flag_values=values
    )
    flags.DEFINE_float(
        "worth", 0.1, "Model: what SyncBN may cost, as a share of that step.", flag_values=values
    )
    flags.DEFINE_string("plot", None, "Also plot to this PNG file.", flag_values=values)
    flags.DEFINE_string("worker_points", None, "Internal: where a worker writes.", values)
    return values


def _config(values: flags.FlagValues, strategy: str, replicas: int) -> training.Config:
    return training.Config(
        model=values.model,
        width=values.width,
        distribution_strategy=strategy,
        num_replicas=replicas,
        replica_batch_size=values.images,
        steps_per_loop=values.steps_per_loop,
        data_dir=values.data_dir,
    )


def _of_workers(count: int, values: flags.FlagValues) -> list[Point]:
    """Measures in so many processes of their own."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "points.json"
        names = ("model", "width", "images", "steps_per_loop", "data_dir", "rounds")
        given = [f"--{name}={values[name].value}" for name in names if values[name].value]
        command = [sys.executable, "-m", "benchmarks.scaling", *given]
        command += [f"--norms={','.join(values.norms)}", f"--worker_points={path}"]
        if local_cluster.run(count, command):
            raise RunError(f"{count} workers did not end well")
        return [Point(**point) for point in json.loads(path.read_text())]


def _as_worker(values: flags.FlagValues) -> None:
    config = _config(values, "multi_worker_mirrored", 1)
    points = measure(values.norms, config, values.rounds)
    if workers.is_chief(strategies.create(config)):
        measuring.write(values.worker_points, points)


def run(values: flags.FlagValues) -> None:
    """Prints what is measured, then what is modelled."""
    if values.worker_points:
        _as_worker(values)
        return
    replicas, processes = (sorted(map(int, n)) for n in (values.replicas, values.workers))
    strategies.prepare_cpu_devices(max(replicas, default=1))
    settings = [(0, n) for n in replicas] + [(n, n) for n in processes]
    start, points = time.monotonic(), []
    for number, (count, of_all) in enumerate(settings, 1):
        place = f"{of_all} replica{'s' * (of_all > 1)}, {scaling_report.where(count)}"
        print(
            f"[{number}/{len(settings)}, {time.monotonic() - start:.0f} s] measuring {place} ...",
            flush=True,
        )
        if count:
            points += _of_workers(count, values)
        else:
            points += measure(values.norms, _config(values, "mirrored", of_all), values.rounds)
    print(scaling_report.measured_table(points, _setting(values)))
    model = None
    if _SYNCHRONIZED in values.norms:
        logical = [p for p in points if p.norm == _SYNCHRONIZED and not p.workers]
        model = modelled(payloads(logical), values)
        print(scaling_report.modelled_table(model, _SYNCHRONIZED))
    given = [values[name].serialize() for name in sorted(values) if values[name].present]
    command = " ".join(["python -m benchmarks.scaling", *given])
    if values.plot:
        scaling_report.plot(points, model, f"{command}\n{_setting(values)}", values.plot)
    records = {
        "command": command,
        "versions": versions("tensorflow", "keras"),
        "cores": os.cpu_count(),
        "setting": _setting(values),
        "measured": points,
        "modelled": model,
    }
    measuring.write(values.output, records)


def _setting(values: flags.FlagValues) -> str:
    return (
        f"{values.model} of width {values.width}, {values.images} images a replica, "
        "all replicas on this machine's CPU"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
