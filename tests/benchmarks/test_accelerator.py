"""Programs for accelerators: what is exported computes the same elsewhere, and is counted right."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import layers as layer_benchmark
from benchmarks.accelerator import export, passes, programs, stablehlo
from tfnorm import layers

ROOT = pathlib.Path(__file__).parents[2]
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="JAX is not installed: pip install -e '.[accelerator]'",
)

# As XLA writes it: a look at x, its sums, and what is made of both; y lies in a TPU's own memory.
_HLO = """HloModule main

%looks (p.0: f32[4,6]) -> f32[2,6] {
  %p.0 = f32[4,6]{1,0} parameter(0)
  ROOT %slice.1 = f32[2,6]{1,0} slice(%p.0), slice={[0:4:2], [0:6]}
}

%twice (p.1: f32[4,6], p.2: f32[6]) -> (f32[4,6], f32[24]) {
  %p.1 = f32[4,6]{1,0} parameter(0)
  %p.2 = f32[6]{0} parameter(1)
  %b = f32[4,6]{1,0} broadcast(%p.2), dimensions={1}
  %y = f32[4,6]{1,0} add(%p.1, %b)
  %z = f32[24]{0} bitcast(%y)
  ROOT %t = (f32[4,6]{1,0}, f32[24]{0}) tuple(%y, %z)
}

ENTRY %main.1 (x: f32[24]) -> f32[24] {
  %x = f32[24]{0} parameter(0)
  %x.2 = f32[4,6]{1,0} bitcast(%x)
  %zero = f32[] constant(0)
  %some = f32[2,6]{1,0} fusion(%x.2), kind=kLoop, calls=%looks
  %sum = f32[6]{0} reduce(%x.2, %zero), dimensions={0}, to_apply=%add
  %both = (f32[4,6]{1,0:T(8,128)S(1)}, f32[24]{0}) fusion(%x.2, %sum), kind=kLoop, calls=%twice
  %near = f32[4,6]{1,0:T(8,128)S(1)} get-tuple-element(%both), index=0
  %far = f32[24]{0} get-tuple-element(%both), index=1
  %square = f32[4,6]{1,0} multiply(%near, %x.2), metadata={op_name="f32[4,6] parameter(9)"}
  %start = (f32[24]{0:S(1)}, f32[24]{0}, u32[]) copy-start(%far)
  %done = f32[24]{0:S(1)} copy-done(%start)
  ROOT %out = f32[24]{0} negate(%done)
}
"""


def test_passes_are_reads_and_writes_of_whole_arrays_in_main_memory():
    # Reads: sum, both, square, start. Writes: both, square, out.
    assert passes.count(_HLO, 24) == passes.Passes(kernels=5, reads=4, writes=3)
    assert passes.count(_HLO, 12) == passes.Passes(kernels=1, reads=0, writes=1)


def test_stablehlo_loses_what_only_tensorflow_knows():
    text = (
        "#loc1 = loc(unknown)\n"
        "module @a_run__.8 attributes {mhlo.input_output_alias = [{alias = {a = 4 : i64}}]} {\n"
        '  %1 = "mhlo.copy"(%0) : (tensor<2xf32>) -> tensor<2xf32> loc(fused[#loc1, "f(x)"])\n'
        "  %2 = mhlo.copy %1 : tensor<2xf32> loc(#loc1)\n"
        '  %3 = stablehlo.negate %2 {mhlo.frontend_attributes = {a = "b"}} : tensor<2xf32>\n'
        "}\n#loc2 = loc(#loc1)"
    )
    assert stablehlo.portable(text) == (
        "module @main {\n"
        "  %1 = stablehlo.reshape %0 : (tensor<2xf32>) -> tensor<2xf32>\n"
        "  %2 = stablehlo.reshape %1 : (tensor<2xf32>) -> tensor<2xf32>\n"
        "  %3 = stablehlo.negate %2 : tensor<2xf32>\n"
        "}\n"
    )
    with pytest.raises(ValueError, match=r"not StableHLO: %4 = mhlo\.erf"):
        stablehlo.portable("  %4 = mhlo.erf %3 : tensor<2xf32>")


def test_programs_are_read_as_they_were_written(rng, tmp_path):
    arrays = [rng.normal(3, 2, (400, 5)).astype(np.float32), np.array([7, 9]), np.ones(3)]
    arguments = tuple(map(programs.Argument.like, arrays))
    program = programs.Program("a table", "bn", programs.BASELINE, 2000, arguments, "bn.mlir.gz")
    programs.write(tmp_path, [(program, "module")])
    assert programs.read(tmp_path) == [program]
    assert programs.text_of(tmp_path, program) == "module"
    random, integers, constant = (a.made(rng, np.dtype(a.dtype)) for a in program.arguments)
    assert (random.mean(), random.std()) == pytest.approx((3, 2), abs=0.2)
    np.testing.assert_array_equal(integers, [7, 9])
    np.testing.assert_array_equal(constant, np.ones(3))


@needs_jax
def test_jax_computes_what_the_layer_does(rng):
    """mabn: its state is of several shapes and dtypes, and both passes write it."""
    from benchmarks.accelerator import run

    layer = layers.MovingAverageBatchNormalization(window=3, warmup_steps=0)
    shape = (2, 3, 3, 4)
    layer.build(shape)
    for variable in layer.weights[:4]:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
    spec = tf.TensorSpec(shape)
    text, described = export.lowered(layer_benchmark.trained(layer), (spec, [], spec))
    x, dy = (tf.constant(rng.normal(size=shape), tf.float32) for _ in range(2))
    in_graph = tf.function(layer_benchmark.trained(layer))
    handles = {id(v.value.handle): v.numpy() for v in layer.weights}
    captured = in_graph.get_concrete_function(spec, [], spec).captured_inputs
    values = [x.numpy(), dy.numpy(), *(handles[id(handle)] for handle in captured)]
    assert [a.shape for a in described] == [np.shape(v) for v in values]
    wanted = [v.numpy() for v in in_graph(x, [], dy)]
    device = run.Device()
    values = [run.jax.numpy.asarray(v) for v in values]
    outputs = list(map(np.asarray, run.call(device.compiled(text), values)))
    for got, want in zip(outputs, wanted):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    # Then the variables that were written, in an order of XLA's own.
    written = outputs[len(wanted) :]
    changed = [v.numpy() for v in layer.weights if (v.numpy() != handles[id(v.value.handle)]).any()]
    assert len(written) == len(changed) == 6
    for got in written:
        assert any(
            got.shape == v.shape and np.allclose(got, v, rtol=2e-5, atol=1e-5) for v in changed
        )

    # Repeated, it takes the same arguments every time, and no time is saved.
    often = device.compiled(stablehlo.repeated(text, 3))
    for got, want in zip(run.call(often, values), outputs, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    (module,) = often.hlo_modules()
    (body,) = re.findall(r" while\(.*body=(%[\w.]+)", module.to_string())
    computations = module.to_string().split("\n\n")
    (looped,) = [c for c in computations if c.startswith(f"{body} ")]
    (entry,) = [c for c in computations if c.startswith("ENTRY")]
    assert looped.count(" fusion(") >= entry.count(" fusion(") > 5


@needs_jax
def test_layers_are_exported_and_run_without_tensorflow(tmp_path):
    command = ["export", f"--directory={tmp_path}", "--shapes=2x4x4x8", "--dtypes=bfloat16"]
    assert export.main([*command, "--layers=bn", "--networks=false"]) == 0
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow is imported')")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", "run", f"--directory={tmp_path}"]
        + ["--programs=^layer", "--rounds=2", f"--output={tmp_path / 'out.json'}"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "layer, forward and backward, 2×4×4×8 bfloat16\n" in done.stdout
    baseline, bn = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (baseline["name"], baseline["ratio"], bn["name"]) == ("Keras BN", 1, "bn")
    for result in (baseline, bn):
        assert result["milliseconds"] > 0 and result["bytes_accessed"] > 0 and result["flops"] > 0
        assert result["passes"]["writes"] >= 2 and result["copy_share"] > 0


@needs_jax
def test_what_cannot_be_run_is_told(tmp_path, capsys):
    from benchmarks.accelerator import run

    assert run.main(["run", f"--directory={tmp_path}"]) == 2
    assert (
        "has no programs.json; python -m benchmarks.accelerator export" in capsys.readouterr().err
    )
