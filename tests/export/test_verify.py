"""The comparison of an export with its model, in a process without tfnorm and Keras."""

import collections
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm.errors import RunError, UserError
from tfnorm.export import Postprocessing, export_saved_model, saved_model, verify
from tfnorm.export import record as recording
from tfnorm.export.signature import Signature

L = keras.layers


def record(model, examples=None):
    return recording.record(model, Signature(model), examples)


def test_holds_for_what_is_folded_and_for_what_is_left(randomized, tmp_path):
    image = keras.Input((None, None, 3), name="image", dtype="uint8")
    index, noise = keras.Input((2,), dtype="int32", name="index"), keras.Input((4,), name="noise")
    y = L.Conv2D(4, 3)(L.Rescaling(1 / 255)(image))
    y = L.ReLU()(tfnorm.layers.BatchNormalization()(y))
    y = L.GroupNormalization(2)(L.Conv2D(4, 1)(y))
    y = tfnorm.layers.BatchRenormalization()(y, training=True)
    y = L.GlobalAveragePooling2D()(y) + L.Flatten()(L.Embedding(2, 2)(index)) + noise
    model = randomized(keras.Model([image, index, noise], {"y": y, "class": keras.ops.argmax(y)}))
    result = export_saved_model(model, tmp_path)
    assert [row.folded for row in result.report.rows] == [True, False, False]
    assert result.verification.batch_sizes == (1, 3, 32)
    assert result.verification.runtimes == ("tensorflow_python", "tensorflow_c")
    assert result.verification.tolerance == 1e-5
    assert 0 < result.verification.difference < 1e-5


def test_difference_removes_the_export(randomized, tmp_path, monkeypatch):
    x = keras.Input((4,))
    model = randomized(keras.Model(x, L.Dense(3, name="logits")(x)))
    write = saved_model.write_saved_model

    def tampered(folded, *args):
        folded.layers[-1].kernel.assign(folded.layers[-1].kernel * 1.001)
        return write(folded, *args)

    monkeypatch.setattr(saved_model, "write_saved_model", tampered)
    with pytest.raises(RunError) as error:
        export_saved_model(model, tmp_path)
    number = r"[\d.e+-]+"
    assert re.fullmatch(
        r"The exported model, run by tf\.saved_model\.load, differs from the model: output "
        rf"'logits', batch of \d+: largest difference {number} at a scale of {number}, "
        r"that is 0\.000\d+; allowed is 1e-05\.",
        str(error.value),
    )
    assert list(tmp_path.iterdir()) == []


def test_export_that_cannot_be_loaded(tmp_path):
    x = keras.Input((4,))
    with pytest.raises(RunError) as error:
        verify.verify_export(tmp_path, record(keras.Model(x, L.Dense(3)(x))), 1e-5)
    assert re.fullmatch(
        r"The exported model cannot be run by tf\.saved_model\.load without tfnorm and Keras: "
        r"OSError: SavedModel file does not exist at: "
        rf"{re.escape(str(tmp_path))}.* \(exit code 1\)\.",
        str(error.value),
    )


def test_export_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_SECONDS", 0.01)
    x = keras.Input((4,))
    with pytest.raises(RunError) as error:
        verify.verify_export(tmp_path, record(keras.Model(x, L.Dense(3)(x))), 1e-5)
    assert str(error.value) == (
        "The exported model, run by tf.saved_model.load, did not answer within 0.01 s."
    )


def test_process_cannot_import_what_is_blocked():
    program = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "import importlib.util, process\n"
        "process.block(('tfnorm', 'keras', 'tf_keras', 'tensorflow'))\n"
        "for name in ('tfnorm', 'keras', 'keras.layers', 'tf_keras', 'tensorflow'):\n"
        "    try: __import__(name); print(name, 'can be imported')\n"
        "    except ImportError: pass\n"
        "print(importlib.util.find_spec('keras'), importlib.util.find_spec('tfnorm'))"
    )
    package = verify._SCRIPT.parent
    command = [sys.executable, "-I", "-c", program, str(package), str(package.parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-5), ("mixed_float16", 10 / 1024), ("mixed_bfloat16", 10 / 128)],
)
def test_tolerance_follows_the_coarsest_dtype(dtype, tolerance):
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2, dtype="float32")(L.Dense(3, dtype=dtype)(x)))
    assert verify.default_tolerance(model, []) == tolerance
    assert verify.default_tolerance(model, [], "bfloat16") == 10 / 128


def test_tolerance_follows_what_the_model_makes_of_a_rounding_error():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, L.Dense(1, use_bias=False)(inputs))
    model.set_weights([np.array([[1e4], [-1e4]], "float32")])
    examples = np.array([[1.0, 1.0001], [0.7, 0.7002]], "float32")
    batches = recording.record(model, Signature(model), examples)
    # Alone in its batch, the first output is -1; an input off by 2⁻²³ moves it by 1e4·2⁻²³.
    one_input = 5 * 1e4 * 2.0**-23
    assert one_input / 2 < verify.default_tolerance(model, batches) < 2.2 * one_input
    model.set_weights([np.array([[1e6], [-1e6]], "float32")])
    batches = recording.record(model, Signature(model), examples)
    assert verify.default_tolerance(model, batches) == verify.LARGEST_TOLERANCE == 1e-2
    model.set_weights([np.array([[3.0], [-1.0]], "float32")])
    batches = recording.record(model, Signature(model), examples)
    assert verify.default_tolerance(model, batches) == 1e-5


def model_of(shape=(4,), dtype="float32"):
    x = keras.Input(shape, name="x", dtype=dtype)
    return keras.Model(x, L.Identity()(x), name="net")


def test_record_repeats_the_examples():
    examples = np.arange(8, dtype="float32").reshape(2, 4)
    batches = record(model_of(), examples)
    assert [batch.size for batch in batches] == [1, 3, 32]
    np.testing.assert_array_equal(batches[1].inputs["x"], examples[[0, 1, 0]])
    np.testing.assert_array_equal(batches[1].outputs["identity"], examples[[0, 1, 0]])
    assert batches[1].outputs["identity"].dtype == np.float64


def test_record_keeps_to_a_fixed_batch():
    x = keras.Input(batch_shape=(5, 4), name="x")
    assert [batch.size for batch in record(keras.Model(x, L.Dense(2)(x)))] == [5]


def test_a_model_that_answers_nothing_finite_is_no_measure(tmp_path):
    x = keras.Input((6, 6, 3))
    norm = tfnorm.layers.BatchNormalization()
    y = L.GlobalAveragePooling2D()(norm(L.Conv2D(4, 3)(x)))
    model = keras.Model(x, {"partly": y, "label": L.Dense(2)(y)}, name="net")
    norm.moving_mean.assign([np.nan, 0, 0, 0])
    with pytest.raises(UserError) as error:
        export_saved_model(model, tmp_path)
    assert str(error.value) == (
        "The output 'label' of the model 'net' is not finite on any input that was tried: nothing "
        "can be compared with it. Look for weights that are not finite (tfnorm.recalibrate "
        "measures moving statistics anew), or give verify=False (--noverify)."
    )
    assert not [*tmp_path.iterdir()]
    norm.moving_mean.assign([1.0, 0, 0, 0])
    assert export_saved_model(model, tmp_path).verification.difference < 1e-5


def test_noise_is_varied():
    for dtype in ("float32", "float64", "uint8", "int32", "bool"):
        values = record(model_of(dtype=dtype))[-1].inputs["x"]
        assert values.dtype == dtype
        assert len(np.unique(values)) > (2 if dtype in ("float32", "float64", "uint8") else 1)


def message_of(*args):
    with pytest.raises(UserError) as error:
        record(*args)
    return str(error.value)


def test_examples_that_do_not_fit():
    for examples, received in (
        (np.ones((2, 5)), "(2, 5)"),
        (np.ones(4), "(4,)"),
        (np.ones((0, 4)), "(0, 4)"),
        ([np.ones((2, 4)), np.ones((2, 4))], "(2, 4), (2, 4)"),
    ):
        assert message_of(model_of(), examples) == (
            "The examples do not fit the inputs of the export, which are x (None, 4). "
            f"Received arrays of shape {received}. Give one non-empty array for each input."
        )


def two_inputs():
    b, a = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    return keras.Model([b, a], L.Concatenate()([L.Rescaling(2.0)(b), a]), name="two")


def test_examples_by_name():
    """And not by their order in the alphabet; of a model that has names itself, by these."""
    examples = {"b": np.full((2, 3), 7.0), "a": np.full((2, 3), -1.0)}
    by_name = {"first": keras.Input((3,), name="b"), "second": keras.Input((3,), name="a")}
    named = keras.Model(by_name, two_inputs()(list(by_name.values())))
    for model, given in (
        (two_inputs(), examples),
        (two_inputs(), [*examples.values()]),
        (named, {"second": examples["a"], "first": examples["b"]}),
        (named, collections.OrderedDict(second=examples["a"], first=examples["b"])),
    ):
        (output,) = record(model, given)[0].outputs.values()
        np.testing.assert_array_equal(output, [[14, 14, 14, -1, -1, -1]])


def test_examples_of_other_names_or_lengths():
    array = np.ones((2, 3))
    assert message_of(two_inputs(), {"image": array, "mask": array}) == (
        "The inputs of the export are b, a. Received examples of image, mask. Give one non-empty "
        "array for each input."
    )
    assert message_of(two_inputs(), {"b": array, "a": array[:1]}) == (
        "The examples of all inputs belong together, row by row. Received 2 of b, 1 of a. Give "
        "equally many of each."
    )


@pytest.mark.parametrize("examples, received", [("x", "()"), ([["a"] * 4], "(), (), (), ()")])
def test_examples_of_texts_for_numbers(examples, received):
    message = message_of(model_of(), examples)
    assert message.startswith("The examples do not fit the inputs of the export")
    assert f"Received arrays of shape {received}. Give" in message


def test_noise_has_other_sizes_for_each_batch():
    shapes = [batch.inputs["x"].shape for batch in record(model_of((None, 2)))]
    assert shapes == [(1, 96, 2), (3, 64, 2), (32, 32, 2)]


def test_what_a_model_returns_before_postprocessing_is_known():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, L.Rescaling(50)(x))
    signature = Signature(model, None, Postprocessing(top_k=2))
    examples = np.array([[0.0, 0.0, -4.0, 3.0]])
    batch = recording.record(model, signature, examples)[0]
    assert batch.largest == 200
    assert batch.scores.shape == (1, 4)
    assert batch.outputs["scores"].shape == (1, 2)


def test_no_noise_for_strings():
    assert message_of(model_of(dtype="string")) == (
        "There is no noise of dtype string for the input 'x'. "
        "Give examples= (--examples=inputs.npy), inputs that the model can be run on, or "
        "verify=False (--noverify)."
    )


def test_model_that_cannot_be_run_on_noise():
    x = keras.Input((None, 2), name="x")
    y = L.Lambda(lambda t: tf.ensure_shape(t, (None, 7, 2)), output_shape=(7, 2))(x)
    message = message_of(keras.Model(x, y, name="net"))
    assert message.startswith("The model 'net' cannot be run on inputs of shape x (1, 96, 2): ")
    assert message.endswith(
        ". Give examples= (--examples=inputs.npy), inputs that it can be run on, or verify=False "
        "(--noverify)."
    )
    assert "\n" not in message and "{{" not in message and "Arguments received" not in message


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has the call that it takes")
def test_the_processes_of_a_verification_end_with_their_parent():
    """By kill -9 too, where nothing can be cleaned up."""
    path = pathlib.Path(recording.__file__).with_name("runtimes") / "process.py"
    child = (
        f"import runpy, time; runpy.run_path({str(path)!r})['end_with_parent'](); "
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    # It is read to its end once nobody is left to write.
    assert process.communicate(timeout=20)[0] == b""
