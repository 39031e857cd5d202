"""What a user of an export should know, for programs (JSON) and for people (Markdown)."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm import files
from tfnorm.export.quantization import Quantization
from tfnorm.export.report import Report
from tfnorm.export.signature import NAME, Signature
from tfnorm.export.verify import RUNTIMES, Verification
from tfnorm.version import versions


def model_card(
    name: str,
    signature: Signature,
    serve: Any,
    report: Report,
    verification: Verification | None,
    *,
    formats: Sequence[str],
    weights_dtype: str | None,
    training: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    quantization: Quantization | None = None,
) -> dict[str, Any]:
    """The card as data that JSON can hold.

    Args:
        name: of the model.
        signature: of the export.
        serve: its function.
        report: of folding.
        verification: of the export.
        formats: it is written as.
        weights_dtype: kernels are stored in; None is their own.
        training: the configuration of the training run. Paths are left out: they say nothing
            where the export is served.
        metrics: what was measured of its weights.
        quantization: what 8-bit integers cost, if there are any.
    """
    training = {
        key: value
        for key, value in (training or {}).items()
        if key not in ("model_dir", "data_dir") and not _is_path(value)
    }
    outputs = serve.get_concrete_function().structured_outputs
    return {
        "name": name,
        "norms": list(dict.fromkeys(row.norm for row in report.rows)),
        "formats": list(formats),
        "signature": {
            "name": NAME,
            "inputs": [_tensor(spec.name, spec) for spec in signature.inputs],
            "outputs": [_tensor(key, outputs[key]) for key in sorted(outputs)],
        },
        "preprocessing": signature.preprocessing and signature.preprocessing.to_dict(),
        "postprocessing": signature.postprocessing and signature.postprocessing.to_dict(),
        "weights_dtype": weights_dtype,
        "training": training or None,
        "metrics": dict(metrics) if metrics else None,
        "verification": verification
        and {
            "runtimes": [RUNTIMES[runtime] for runtime in verification.runtimes],
            "batch_sizes": list(verification.batch_sizes),
            "difference": verification.difference,
            "tolerance": verification.tolerance,
            "rounding": verification.rounding,
        },
        "quantization": quantization and dataclasses.asdict(quantization),
        "fold": report.to_dict(),
        "versions": versions("tensorflow", "keras", "numpy"),
    }


def write_model_card(folder: pathlib.Path, card: Mapping[str, Any], report: Report) -> None:
    """Writes model_card.json and model_card.md."""
    text = json.dumps(files.finite(card), indent=2, ensure_ascii=False, default=_plain) + "\n"
    (folder / "model_card.json").write_text(text, encoding="utf-8")
    (folder / "model_card.md").write_text(markdown(card, report), encoding="utf-8")


def markdown(card: Mapping[str, Any], report: Report) -> str:
    """The card as Markdown."""
    signature = card["signature"]
    rows = [
        (kind, tensor["name"], tensor["dtype"], _shape(tensor["shape"]))
        for kind in ("input", "output")
        for tensor in signature[f"{kind}s"]
    ]
    sections = [
        f"# {card['name']}",
        f"Normalizers: {', '.join(card['norms']) or 'none'}. "
        f"Formats: {', '.join(card['formats'])}. "
        f"Kernels stored as {card['weights_dtype'] or 'they were'}.",
        f"## Signature {signature['name']}",
        _table(("", "name", "type", "shape"), rows),
    ]
    titles = ("preprocessing", "postprocessing", "metrics", "verification", "quantization")
    for title in (*titles, "training"):
        if card[title]:
            pairs = [(key, _cell(value)) for key, value in card[title].items()]
            sections += [f"## {title.capitalize()}", _table(("", ""), pairs)]
    sections += ["## Folding", f"```text\n{report}\n```"]
    sections += ["## Versions", ", ".join(f"{k} {v}" for k, v in card["versions"].items())]
    return "\n\n".join(sections) + "\n"


def _plain(value: Any) -> Any:
    """What a configuration holds that JSON has no word for: a number of NumPy's, or any object."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _is_path(value: Any) -> bool:
    """Of this machine: absolute, or of something that is there; of a preset too."""
    if not isinstance(value, str):
        return False
    path = value.removeprefix("hub:")
    return os.path.isabs(path) or (os.sep in path and os.path.exists(path))


def _tensor(name: str, spec: tf.TensorSpec | tf.Tensor) -> dict[str, Any]:
    return {"name": name, "dtype": spec.dtype.name, "shape": spec.shape.as_list()}


def _shape(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
