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
"""

import dataclasses
import itertools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

from benchmarks import measuring
from benchmarks.all_reduce import ALGORITHMS, Link, Payload
from tfnorm import commands, data, training
from tfnorm.errors import RunError, UserError
from tfnorm.study.summary import text_table
from tfnorm.training import local_cluster, strategies, workers
from tfnorm.training.trainer import Trainer

_BASELINE, _SYNCHRONIZED = "bn", "syncbn"
_MODELLED = tuple(2**k for k in range(3, 11))  # 8 ... 1,024


@dataclasses.dataclass(frozen=True)
class Point:
    """One measured setting.

    Attributes:
        norm: name of the norm.
        workers: processes.
        replicas: of all of them.
        milliseconds: of a step.
        payloads: bytes that a replica hands to each collective of a step, for normalization.
    """

    norm: str
    workers: int
    replicas: int
    milliseconds: float
    payloads: tuple[int, ...]


def measure(norms: Sequence[str], base: training.Config, rounds: int) -> list[Point]:
    """Times a step of each norm in turn, on the replicas of `base`.

    Args:
        norms: names of norms.
        base: all but the norm; `steps_per_loop` steps are one measurement.
        rounds: how often each is timed.
    """
    strategy = strategies.create(base)
    dataset = data.load(base.dataset, base.data_dir, base.train_examples or None)
    trainers, functions = {}, {}
    for norm in norms:
        trainer = Trainer(dataclasses.replace(base, norm=norm), dataset, strategy)
        trainers[norm], functions[norm] = trainer, _steps(trainer)
        functions[norm]()  # Traces, which takes long: each norm's before any is timed.
    figures = measuring.interleave(functions, norms[0], rounds, warmup=1)
    processes = strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)
    return [
        Point(
            norm,
            processes,
            strategy.num_replicas_in_sync,
            figures[norm].milliseconds / base.steps_per_loop,
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


def modelled(link: Link, sizes: Sequence[Payload], replicas: int) -> dict[str, float]:
    """Seconds that the collectives of a step take on so many accelerators, by algorithm."""
    return {
        name: sum(seconds(link, replicas, p.size(replicas)) for p in sizes)
        for name, seconds in ALGORITHMS.items()
    }


def first_above(seconds: Mapping[int, float], limit: float) -> int | None:
    """The least number of replicas from which on all take longer than `limit` seconds."""
    found = None
    for replicas in sorted(seconds, reverse=True):
        if seconds[replicas] <= limit:
            break
        found = replicas
    return found


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=10)
    flags.DEFINE_list("replicas", ["1", "2", "4", "8"], "Logical devices.", flag_values=values)
    flags.DEFINE_list("workers", ["1", "2"], "Local processes, a replica each.", flag_values=values)
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
        return [
            Point(**{**point, "payloads": tuple(point["payloads"])})
            for point in json.loads(path.read_text())
        ]


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
    points = []
    for count in replicas:
        print(f"measuring {count} replicas in one process ...", flush=True)
        points += measure(values.norms, _config(values, "mirrored", count), values.rounds)
    logical = list(points)
    for count in processes:
        print(f"measuring {count} workers of one replica ...", flush=True)
        points += _of_workers(count, values)
    print(_measured_table(points, values))
    records = [dataclasses.asdict(point) for point in points]
    if _SYNCHRONIZED in values.norms:
        sizes = payloads([p for p in logical if p.norm == _SYNCHRONIZED])
        print(_modelled_table(sizes, values))
    measuring.write(values.output, records)


def _measured_table(points: Sequence[Point], values: flags.FlagValues) -> str:
    base = {(p.workers, p.replicas): p.milliseconds for p in points if p.norm == _BASELINE}
    lines = []
    for p in points:
        own = base.get((p.workers, p.replicas))
        more = "-" if own is None else f"{p.milliseconds - own:+.2f}"
        lines.append(
            [p.norm, str(p.workers), str(p.replicas), f"{p.milliseconds:.2f}", more]
            + [str(len(p.payloads)), f"{sum(p.payloads) / 1e3:.1f}"]
        )
    titles = ["norm", "workers", "replicas", "step\n(ms)", f"more than\n{_BASELINE} (ms)"]
    titles += ["collectives\na step", "sent by a\nreplica (kB)"]
    title = (
        f"\nMEASURED: {values.model} of width {values.width}, {values.images} images a replica, "
        "all replicas on this machine's CPU"
    )
    return "\n".join([title, "", text_table(titles, lines)])


def _modelled_table(sizes: Sequence[Payload], values: flags.FlagValues) -> str:
    link = Link(values.latency_us * 1e-6, values.bandwidth_gbs * 1e9)
    times = {n: modelled(link, sizes, n) for n in _MODELLED}
    lines = [
        [str(n), f"{sum(p.size(n) for p in sizes) / 1e3:.1f}"]
        + [f"{1e3 * s:.2f} ({1e5 * s / values.step_ms:.0f} %)" for s in t.values()]
        for n, t in times.items()
    ]
    titles = ["accelerators", "sent by a\nreplica (kB)"]
    titles += [f"{name}: ms (share\nof a step)" for name in ALGORITHMS]
    title = (
        f"\nMODELLED: the {len(sizes)} collectives of a step under {_SYNCHRONIZED}, "
        f"{values.latency_us:g} µs latency and {values.bandwidth_gbs:g} GB/s a link, "
        f"a step of {values.step_ms:g} ms without them"
    )
    limit = values.worth * values.step_ms / 1e3
    verdicts = []
    for name in ALGORITHMS:
        least = first_above({n: t[name] for n, t in times.items()}, limit)
        among = f"{_MODELLED[0]} to {_MODELLED[-1]}"
        where = f"from N = {least} on" if least else f"at no N from {among}"
        verdicts.append(
            f"With a {name}, {_SYNCHRONIZED} costs more than {100 * values.worth:g} % of a step "
            f"{where}."
        )
    return "\n".join([title, "", text_table(titles, lines), "", *verdicts])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
