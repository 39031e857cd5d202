"""Figures that README and the documentation quote, from bench.json: `make bench` writes them anew.

    python -m benchmarks.quotes [--bench=results/benchmarks/bench.json]

What stands between the marks `<!-- measured: NAME -->` and `<!-- end -->` is made here, from the
ratios that `benchmarks.bench` has written, and from what other benchmarks have. A test sees that
the pages say what the files say.
"""

import functools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import quotes_of_files
from benchmarks.quoting import sentences, span
from tfnorm import commands
from tfnorm.errors import UserError
from tfnorm.files import write_text
from tfnorm.tables import markdown_table

PAGES = ("README.md", "docs/benchmarks.md", "docs/reliability.md", "docs/normalizers/*.md")
"""Where figures are quoted."""

_BENCH = "results/benchmarks/bench.json"
_ROOT = pathlib.Path(__file__).parent.parent
_MARKED = re.compile(r"(<!-- measured: ([\w .-]+) -->)(\s*).*?(<!-- end -->)", re.DOTALL)
_LAYERS = ("bn", "brn", "mabn", "bkn")
_OF_EXAMPLES = ("on", "evalnorm", "sn", "bin")
_DENSE = "4096×256 float32"  # as behind a dense layer: examples have one position
_NETWORKS = ("bn", "brn", "mabn", "bkn", "cbn", "sampled cbn", "gn")

Parts = Mapping[str, Any]


def quoted(text: str, parts: Parts) -> str:
    """A page with the figures between its marks as they are in `parts` of bench.json.

    Raises:
        UserError: a mark has a name that is not known, or bench.json lacks what it names.
    """

    def figures(match: re.Match) -> str:
        start, name, space, end = match.groups()
        return f"{start}{space}{_figures(name, parts)}{space}{end}"

    return _MARKED.sub(figures, text)


def _figures(name: str, parts: Parts) -> str:
    kind, _, argument = name.partition(" of ")
    arguments = [argument] if argument else []
    if kind not in _MAKERS | _OF_FILES:
        known = ", ".join(_MAKERS | _OF_FILES)
        raise UserError(f"no figures are called {name!r}; known are {known}")
    try:
        if kind in _MAKERS:
            return _MAKERS[kind](parts, *arguments)
        return _OF_FILES[kind](*arguments)
    except KeyError as error:
        lacks = f"lacks {error.args[0]!r}, which {name!r} needs"
        text = f"its file {lacks}" if kind in _OF_FILES else f"bench.json {lacks}: run make bench"
        raise UserError(text) from None


def _columns(parts: Parts, part: str, title: str) -> dict[str, dict[str, Any]]:
    """The records of a table, by column."""
    found = {r["column"]: r for r in parts[part]["records"] if r.get("table") == title}
    if not found:
        raise KeyError(title)
    return found


def _ratio(record: Mapping[str, Any], name: str) -> str:
    figure = record["figures"].get(name)
    return f"{figure['ratio']:.2f}" if figure else "-"


def _ratios(records: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [r["figures"][name]["ratio"] for r in records if name in r["figures"]]


def _summary(parts: Parts) -> str:
    """What each costs, in four lines."""
    layers = ", ".join(f"{norm} {_layer(parts, norm)}" for norm in _LAYERS)
    step = _columns(parts, "training", "training step of 8 images")["ResNet-50"]
    steps = ", ".join(f"{norm} {_ratio(step, norm)}" for norm in (*_LAYERS, "cbn"))
    folded, keras, _ = _inference_ranges(parts)
    return (
        f"- a layer, forward and backward: {layers}\n"
        f"- synchronized, on four logical replicas: {_synchronized(parts)}\n"
        f"- a training step of ResNet-50, 8 images: {steps}\n"
        f"- an exported network: {folded} of one without any normalizer; Keras' export {keras}"
    )


def _layer(parts: Parts, norm: str) -> str:
    return span(_ratios(_columns(parts, "layers", "one layer, training").values(), norm))


def _layer_on_images(parts: Parts, norm: str) -> str:
    return span(ratio for shape, ratio in _by_shape(parts, norm) if shape != _DENSE)


def _layer_behind_dense(parts: Parts, norm: str) -> str:
    return span(ratio for shape, ratio in _by_shape(parts, norm) if shape == _DENSE)


def _by_shape(parts: Parts, norm: str) -> list[tuple[str, float]]:
    records = _columns(parts, "layers", "one layer, training")
    return [(shape, record["figures"][norm]["ratio"]) for shape, record in records.items()]


def _synchronized(parts: Parts) -> str:
    return span(_ratios(parts["synchronized"]["records"], "syncbn"))


def _noise(parts: Parts) -> str:
    records = _columns(parts, "layers", "one layer, training").values()
    return span(_ratios(records, "Keras BN again"))


def _limits(parts: Parts, norms: str) -> str:
    """Times of the least traffic with memory."""
    records = list(_columns(parts, "layers", "one layer, training").values())
    times = [
        record["figures"][norm]["milliseconds"] / record["limit_milliseconds"]
        for norm in norms.split(" and ")
        for record in records
    ]
    return span(times, 1)


def _layers(parts: Parts, kind: str = "") -> str:
    if kind == "examples":
        names = [*_OF_EXAMPLES, *(f"{norm}, 16 groups" for norm in _OF_EXAMPLES)]
    else:
        names = [*_LAYERS, *(f"{norm}, 16 groups" for norm in _LAYERS), "Keras GN"]
    records = _columns(parts, "layers", "one layer, training")
    rows = [[shape, *(_ratio(record, name) for name in names)] for shape, record in records.items()]
    return markdown_table(["shape", *names], rows)


def _layers_under_xla(parts: Parts) -> str:
    records = _columns(parts, "layers", "one layer, training under XLA")
    rows = [[shape, *(_ratio(r, name) for name in _LAYERS)] for shape, r in records.items()]
    return markdown_table(["shape", *_LAYERS], rows)


def _cbn(parts: Parts, compiled: str = "") -> str:
    title = f"one layer, training with a 3×3 convolution{compiled}"
    return span(_ratios(_columns(parts, "layers", title).values(), "cbn"))


def _networks(parts: Parts) -> str:
    steps = _columns(parts, "training", "training step of 8 images")
    rows = [[f"{n}, a step", *(_ratio(r, norm) for norm in _NETWORKS)] for n, r in steps.items()]
    starts = _columns(parts, "startup", "start-up of ResNet-50")
    rows.append(["ResNet-50, start-up", *(_start(starts, norm) for norm in _NETWORKS)])
    for network in dict.fromkeys(record["network"] for record in parts["memory"]["records"]):
        own = {r["norm"]: r for r in parts["memory"]["records"] if r["network"] == network}
        whole = own["Keras BN"]["added_bytes"]
        shares = [f"{own[norm]['added_bytes'] / whole:.2f}" for norm in _NETWORKS]
        rows.append([f"{network}, memory beside TensorFlow's own", *shares])
    return markdown_table(["", *_NETWORKS], rows)


def _start(columns: Mapping[str, Mapping[str, Any]], norm: str) -> str:
    """Tracing and the first step; in brackets with converting, which Keras' network needs not."""
    both = columns["tracing and first step"]
    if norm not in both["figures"]:
        return "-"
    whole = both["figures"]["Keras BN"]["milliseconds"]
    converting, traced = (
        columns[column]["figures"][norm]["milliseconds"]
        for column in ("converting", "tracing and first step")
    )
    return f"{_ratio(both, norm)} ({(converting + traced) / whole:.2f})"


def _replicas(parts: Parts) -> str:
    """The whole of each norm on several replicas; a part that is run where it is asked for."""
    part = parts.get("startup_of_replicas")
    if part is None:
        return "not measured yet"
    (whole,) = (record for record in part["records"] if record["column"] == "the whole")
    return ", ".join(f"{norm} {_ratio(whole, norm)}" for norm in whole["figures"] if norm != "bn")


def _inference_ranges(parts: Parts) -> list[str]:
    """Of networks folded by tfnorm, exported by Keras, with GroupNormalization."""
    title = "inference of a SavedModel, relative to no normalizer"
    records = list(_columns(parts, "inference", title).values())
    kinds = ("folded by tfnorm", "exported by Keras", "GroupNormalization")
    return [
        span(
            ratio
            for record in records
            for name in record["figures"]
            if name.startswith(kind)
            for ratio in _ratios([record], name)
        )
        for kind in kinds
    ]


def _inference(parts: Parts) -> str:
    unfolded = _columns(parts, "layers", "one layer, inference, not folded")
    float32 = [record for shape, record in unfolded.items() if shape.endswith("float32")]
    layers = span(ratio for norm in _LAYERS for ratio in _ratios(float32, norm))
    folded, keras, groups = _inference_ranges(parts)
    return sentences(f"""
        Not folded, layers take {layers} of Keras' at inference in float32, where a bare copy takes
        {span(_ratios(float32, "copy of x"))}. Folded they take nothing: exported networks take
        {folded} of those without any normalizer, those of Keras' exporter {keras}, with
        GroupNormalization {groups}.
    """)


def _dense(parts: Parts, part: str = "dense") -> str:
    """Training steps, inference and, where it was measured, memory."""
    records = parts[part]["records"]
    names = [name for name in records[0]["figures"] if name != "Keras BN"]
    rows = [
        [f"{record['column']}, {record['table'].partition(',')[0]}",
         *(_ratio(record, name) for name in names)]
        for record in records
    ]  # fmt: skip
    return markdown_table(["", *names], rows)


_MAKERS: dict[str, Callable[..., str]] = {
    "summary": _summary,
    "layer": _layer,
    "layer on images": _layer_on_images,
    "layer behind dense": _layer_behind_dense,
    "limit": _limits,
    "noise": _noise,
    "layers": _layers,
    "layers under XLA": _layers_under_xla,
    "cbn": _cbn,
    "cbn under XLA": functools.partial(_cbn, compiled=" under XLA"),
    "synchronized": _synchronized,
    "networks": _networks,
    "start-up on replicas": _replicas,
    "inference": _inference,
    "dense networks": _dense,
}
# From files beside bench.json.
_OF_FILES: dict[str, Callable[..., str]] = {
    "accelerator": quotes_of_files.accelerator,
    "cbn on an H200": quotes_of_files.cbn_on_an_accelerator,
    "kernels on an H200": quotes_of_files.kernels_on_an_accelerator,
    "passes on a TPU": quotes_of_files.passes,
    "stream": quotes_of_files.stream,
    "waiting": quotes_of_files.waiting,
    "exporters": quotes_of_files.exporters,
    "exported patterns": quotes_of_files.exported,
    "synchronization": quotes_of_files.synchronization,
    "runs": quotes_of_files.runs,
    "soak": quotes_of_files.soak,
    "soak minutes": quotes_of_files.minutes_of_soak,
}


def pages() -> list[pathlib.Path]:
    """The files of `PAGES`."""
    return sorted(path for pattern in PAGES for path in _ROOT.glob(pattern))


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("bench", str(_ROOT / _BENCH), "What was measured.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Writes the pages whose figures are others now."""
    try:
        parts = json.loads(pathlib.Path(values.bench).read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--bench={values.bench} is no file of make bench: {error}") from error
    texts = {path: path.read_text(encoding="utf-8") for path in pages()}
    new = {path: quoted(text, parts) for path, text in texts.items()}
    for path in new:
        if new[path] != texts[path]:
            write_text(path, new[path])
            print(f"{path.relative_to(_ROOT)} has new figures")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
