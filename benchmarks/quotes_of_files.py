"""Figures that the documentation quotes from what single benchmarks have written.

Each reads its file in results/, which the command beside it writes; `benchmarks.quotes` puts them
into the pages.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import benchmarks.soak
from benchmarks.quoting import sentences, span
from tfnorm.errors import UserError
from tfnorm.study.figures import Figures
from tfnorm.tables import markdown_table

_RESULTS = pathlib.Path(__file__).parent.parent / "results"
# What writes them; those of accelerators are written elsewhere, see docs/benchmarks.md.
_COMMANDS = {
    "benchmarks/folding": "python -m benchmarks.folding --output=results/benchmarks/folding.json",
    "benchmarks/input": "python -m benchmarks.input --output=results/benchmarks/input.json",
    "soak": "python -m benchmarks.soak --minutes=60 --output=results/soak.json",
    "scaling": "python -m benchmarks.scaling --output=results/scaling.json",
}
_BASELINE = "Keras BN"
_H200 = "benchmarks/accelerator_h200"
_LARGEST = "benchmarks/accelerator_h200_largest"
_V5E = "benchmarks/accelerator_v5e_compiled"
# Of benchmarks.accelerator: a file, and its tables by a regular expression.
_ACCELERATORS = {
    "networks on an H200": (_H200, r"training step of ResNet-50, (.*)"),
    "layers on an H200": (_H200, r"layer, forward and backward, (.* float32)"),
    "the largest layers on an H200": (_LARGEST, r"layer, forward and backward, (.*)"),
}


def _read(name: str) -> Any:
    path = _RESULTS / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no results/{name}.json, which a page quotes: run "
            f"{_COMMANDS.get(name, 'benchmarks.accelerator')}"
        ) from None


def _tables(name: str, pattern: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The results of a file of accelerators by what the pattern finds in their table, by name."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for result in _read(name)["results"]:
        if match := re.fullmatch(pattern, result["table"]):
            found.setdefault(match[1], {})[result["name"]] = result
    return found


def accelerator(name: str) -> str:
    """Times relative to Keras BN's, whose own are milliseconds."""

    def cell(result: Mapping[str, Any]) -> str:
        is_baseline = result["name"] == _BASELINE
        return f"{result['milliseconds']:.3g} ms" if is_baseline else f"{result['ratio']:.2f}"

    tables = _tables(*_ACCELERATORS[name])
    names = list(next(iter(tables.values())))
    rows = [[title, *(cell(own[n]) for n in names)] for title, own in tables.items()]
    return markdown_table(["", *names], rows)


def cbn_on_an_accelerator() -> str:
    """Of a convolution with cbn, in each precision."""
    pattern = r"3×3 convolution and layer, forward and backward, \S+ (\w+)"
    ratios = {name: own["cbn"]["ratio"] for name, own in _tables(_LARGEST, pattern).items()}
    return " and ".join(f"{ratio:.2f} in {name}" for name, ratio in ratios.items())


def kernels_on_an_accelerator() -> str:
    """That read or write arrays of the size of x, of bn and of Keras' layer."""
    (own,) = _tables(_LARGEST, r"layer, forward and backward, (.* float32)").values()
    bn, keras = (own[name]["passes"]["kernels"] for name in ("bn", _BASELINE))
    return f"{bn} kernels for Keras' {keras}"


def passes() -> str:
    """Arrays of the size of x that are read + written on a TPU, and the bytes beside Keras'."""
    pattern = r"(layer, forward|layer, forward and backward), 2×200×304×256 float32"
    tables = _tables(_V5E, pattern)
    names = list(next(iter(tables.values())))
    rows = [
        [title.removeprefix("layer, "), *(_arrays(own[name]["passes"]) for name in names)]
        for title, own in sorted(tables.items())
    ]
    both = max(tables.items())[1]
    share = [both[n]["bytes_accessed"] / both[_BASELINE]["bytes_accessed"] for n in names]
    rows.append(["bytes of both, of Keras BN", *(f"{value:.2f}" for value in share)])
    return markdown_table(["", *names], rows)


def _arrays(own: Mapping[str, int]) -> str:
    return f"{own['reads']} + {own['writes']}"


def stream() -> str:
    """Images a second of the stream and of decoding, beside a plain pipeline."""
    found = _read("benchmarks/input")
    rows = [
        [name, f"{speed:.0f}",
         *(f"{1 / found[kind][name]['ratio']:.2f}" for kind in ("figures", "processor"))]
        for name, speed in found["images_a_second"].items()
    ]  # fmt: skip
    plain = "beside plain tf.data"
    titles = ["", "images a second", plain, f"for a second of a processor, {plain}"]
    return markdown_table(titles, rows)


def waiting() -> str:
    """The share of a training step in which it waits for the stream."""
    return f"{_read('benchmarks/input')['waiting_share']:.1%}".replace("%", " %")


def exporters() -> str:
    """Normalizers that each exporter leaves, by kind of pattern."""
    records = _read("benchmarks/folding")
    names = [name for name in records[0] if name not in ("pattern", "group")]
    rows = [
        [group, *(str(sum(r[n] or 0 for r in records if r["group"] == group)) for n in names)]
        for group in dict.fromkeys(record["group"] for record in records)
    ]
    rows.append(["All", *(str(sum(r[name] or 0 for r in records)) for name in names)])
    return markdown_table(["", *names], rows)


def exported() -> str:
    """How many patterns they were, and on how many an exporter fails."""
    records = _read("benchmarks/folding")
    failed = {name: sum(r[name] is None for r in records) for name in records[0]}
    told = " and ".join(f"{name} on {count}" for name, count in failed.items() if count)
    failing = f" (where one fails, as {told}, it counts as leaving none)" if told else ""
    return f"{len(records)} patterns{failing}"


def synchronization() -> str:
    """What SyncBN's and MABN's steps take beside BN's: measured here, modelled beyond."""
    found = _read("scaling")
    local = [m for m in found["measured"] if m["replicas"] > 1 and not m["workers"]]
    between = {m["norm"]: m for m in found["measured"] if m["workers"] == 2}
    sync, mabn, bn = (between[norm] for norm in ("syncbn", "mabn", "bn"))
    model = found["modelled"]
    collective = (sync["milliseconds"] - bn["milliseconds"]) / model["collectives"]
    ring, tree = (
        {n: f"{own / model['step_ms']:.2f}" for n, own in model["milliseconds"][name].items()}
        for name in ("ring", "tree")
    )

    def ratios(norm: str) -> str:
        return span(m["ratio"] for m in local if m["norm"] == norm)

    *few, most = (m["replicas"] for m in local if m["norm"] == "bn")
    return sentences(f"""
        On resnet8 with 2 images a replica a step under `syncbn` takes {ratios("syncbn")} times that
        of `bn` on {", ".join(map(str, few))} and {most} logical replicas, under `mabn`
        {ratios("mabn")}. Between two worker processes, where each of the {model["collectives"]}
        collectives takes {collective:.1f} ms, `syncbn` takes {sync["ratio"]:.1f} and `mabn`
        {mabn["ratio"]:.1f} times. Modelled, with {model["latency_us"]:g} µs,
        {model["bandwidth_gbs"]:g} GB/s and a step of {model["step_ms"]:g} ms, a ring adds
        {ring["64"]} of a step under `syncbn` on 64 accelerators, {ring["512"]} on 512 and
        {ring["1024"]} on 1,024, where a tree adds {tree["1024"]}.
    """)


def runs(name: str) -> str:
    """What recorded runs of a study came to, by the name that `Figures` gives them."""
    return Figures.read(_RESULTS).text(name)


def minutes_of_soak() -> str:
    """How long it took."""
    return f"{_read('soak')['minutes']:.0f}"


def soak() -> str:
    """What was tried, struck and lost."""
    kinds = _read("soak")["kinds"]
    counts = {kind: benchmarks.soak.Count(**found) for kind, found in kinds.items()}
    return f"```text\n{benchmarks.soak.table(counts)}\n```"
