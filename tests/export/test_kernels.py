"""Kernels that are scaled part by part, and what an export takes of memory."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfnorm
from tfnorm.export import kernels
from tfnorm.export.kernels import Kernel, parts, read_channels, read_parts


@pytest.mark.parametrize(("shape", "elements"), [((7, 5), 12), ((3, 3, 4, 5), 7), ((9,), 4)])
def test_parts_cut_an_array_once(shape, elements):
    counts = np.zeros(shape, int)
    for index in parts(shape, elements):
        assert counts[index].size <= elements or max(counts[index].shape[:-1]) == 1
        counts[index] += 1
    assert np.all(counts == 1)


@pytest.mark.parametrize("elements", [10, 2**20])
@pytest.mark.parametrize("kind", ["variable", "array"])
def test_products_and_sums(kind, elements, rng, monkeypatch):
    cut = parts
    monkeypatch.setattr(kernels, "parts", lambda shape, _=None: cut(shape, elements))
    values = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    values.flags.writeable = False
    source = keras.Variable(values) if kind == "variable" else values
    kernel = Kernel(values.shape, lambda: read_parts(source))
    rows, columns, both = rng.normal(size=(4, 1)), rng.normal(size=5), rng.normal(size=(4, 5))
    scaled = kernel.times(rows).times(columns).times(both)
    expected = np.float64(values) * rows * columns * both
    np.testing.assert_allclose(scaled.sum(1), expected.sum((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(scaled.sum(2), expected.sum((0, 1)), rtol=1e-12)
    target = keras.Variable(np.zeros(values.shape, "float32"))
    scaled.write(target)
    np.testing.assert_array_equal(target.numpy(), expected.astype("float32"))
    target.assign_add(np.ones(values.shape))
    np.testing.assert_array_equal(source, values)
    with pytest.raises(ValueError, match="of shape"):
        scaled.write(keras.Variable(np.zeros((2, 3, 4, 6))))


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (keras.layers.Dense(7), (0,)),
        (keras.layers.Conv2D(7, (3, 2)), (0, 1, 2)),
        (keras.layers.Conv2DTranspose(7, (3, 2)), (0, 1, 3)),
        (keras.layers.DepthwiseConv2D((3, 2), depth_multiplier=3), (0, 1)),
    ],
)
def test_a_wrapped_kernel_is_computed_by_channels(layer, axes, rng, monkeypatch):
    monkeypatch.setattr(kernels, "_ELEMENTS", 60)
    wrapper = tfnorm.layers.WeightStandardization(layer)
    wrapper.build((None, 16) if isinstance(layer, keras.layers.Dense) else (None, 5, 5, 16))
    layer.kernel.assign(rng.normal(size=layer.kernel.shape))
    values = np.float64(layer.kernel.numpy())
    centred = values - values.mean(axes, keepdims=True)
    expected = centred / (centred.std(axes, keepdims=True) + 1e-5)
    found, counts = np.zeros(values.shape), np.zeros(values.shape, int)
    for index, part in read_channels(wrapper):
        found[index], counts[index] = part, counts[index] + 1
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert np.all(counts == 1) and part.size < values.size


PROGRAM = """
import gc, sys
import keras
import tfnorm
from tfnorm.layers import norms

def model(units):
    x = keras.Input((units // 4,))
    y, _ = norms.get("bn")(keras.layers.Dense(units, kernel_initializer="zeros"), x)
    y = keras.layers.ReLU()(y)
    y, _ = norms.get("mabn")(keras.layers.Dense(units // 4, kernel_initializer="zeros"), y)
    return keras.Model(x, y)

def memory(name):
    (line,) = (x for x in open("/proc/self/status") if x.startswith(name))
    return 1024 * int(line.split()[1])

tfnorm.export_saved_model(model(16), sys.argv[1], verify=False)
large = model(8192)
for dtype in (None, "float16"):
    gc.collect()
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # The peak is what is there now.
    tfnorm.export_saved_model(large, sys.argv[1], verify=False, weights_dtype=dtype)
    print((memory("VmHWM") - before) / (4 * large.count_params()))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux' /proc")
def test_an_export_takes_no_more_than_the_weights_and_a_half(tmp_path):
    """Of plain kernels, of those that a wrapper computes, and where they are stored in half."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(tfnorm.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    # A folded kernel is a copy of its own: far less would mean that nothing was measured.
    whole, half = map(float, done.stdout.split()[-2:])
    assert 0.3 < whole < 1.5 and 0.3 < half < 1.5, (whole, half)
