"""The comparison with other exporters, on one pattern that they fold and one that they do not."""

import json
import subprocess
import sys

from benchmarks.exporters import EXPORTERS, Exporter


def test_comparison(tmp_path):
    output = tmp_path / "folding.json"
    only = "^(conv2d|through average pooling)$"
    command = [sys.executable, "-m", "benchmarks.folding", f"--only={only}", f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for exporter in EXPORTERS:
        left_out = f"{exporter.name} is left out: {', '.join(exporter.missing)} not installed."
        assert (left_out in done.stdout) == bool(exporter.missing)
    rows = {row["pattern"]: row for row in json.loads(output.read_text())}
    expected = {
        "conv2d": {"normalizers": 1, "tfnorm": 0, "Keras": 1, "LiteRT": 0},
        "through average pooling": {"normalizers": 1, "tfnorm": 0, "Keras": 1, "LiteRT": 1},
    }
    assert {name: row.items() >= expected[name].items() for name, row in rows.items()} == {
        name: True for name in expected
    }


def test_a_package_that_is_not_installed_is_seen():
    exporter = Exporter("Other", ("numpy", "no_such_package"), lambda model, directory: 0)
    assert exporter.missing == ["no_such_package"]
