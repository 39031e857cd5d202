"""The comparison of an export with its model, in a process without tfnorm and Keras."""

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


def compare(found, scale=1.0, monkeypatch=None):
    """A comparison of one output of that scale with what was found."""
    batch = recording.Batch(2, {}, {"y": np.array([scale, -scale / 2])}, {"y": scale})
    monkeypatch.setattr(verify, "_answers", lambda runtime, path, batches: found)
    return verify.verify_export("path", [batch], 1e-5, ["tensorflow_c"])


@pytest.mark.parametrize(
    ("difference", "scale", "holds"),
    [
        (9e-3, 1000.0, True),
        (2e-2, 1000.0, False),
        (0.0, 0.0, True),
        (1e-3, 0.0, False),
        (float("nan"), 1.0, False),
    ],
)
def test_difference_counts_relative_to_the_output(difference, scale, holds, monkeypatch):
    found = {(2, "y"): np.array([scale, difference - scale / 2])}
    if holds:
        verification = compare(found, scale, monkeypatch)
        assert verification.difference == pytest.approx(difference / (scale or 1.0), rel=1e-6)
    else:
        with pytest.raises(RunError):
            compare(found, scale, monkeypatch)


def test_other_names_and_shapes(monkeypatch):
    with pytest.raises(RunError) as error:
        compare({(2, "z"): np.array([1.0, -0.5])}, 1.0, monkeypatch)
    assert str(error.value) == (
        "The exported model, run by TensorFlow's C API, has the outputs ['z']; expected are ['y']."
    )
    with pytest.raises(RunError) as error:
        compare({(2, "y"): np.array([[1.0], [-0.5]])}, 1.0, monkeypatch)
    assert str(error.value) == (
        "The exported model, run by TensorFlow's C API, returns 'y' in shape (2, 1) for a batch "
        "of 2; expected is (2,)."
    )


def test_classes_are_compared_by_their_scores(monkeypatch):
    scores = np.array([[0.1, 0.3, 0.3 + 1e-7, 0.2]])
    outputs = {"classes": np.array([[b"c", b"b"]]), "scores": scores[:, [2, 1]]}
    ranking = Postprocessing(top_k=2, label_names="abcd")

    def compared(*classes):
        answers = {(1, "classes"): np.array([classes]), (1, "scores"): outputs["scores"]}
        monkeypatch.setattr(verify, "_answers", lambda runtime, path, batches: answers)
        batch = recording.Batch(1, {}, outputs, {"classes": 0.3, "scores": 0.3}, scores)
        return verify.verify_export("path", [batch], 1e-5, ["tensorflow_c"], ranking).difference

    assert compared(b"c", b"b") == 0
    assert 0 < compared(b"b", b"c") < 1e-6  # a tie may be decided either way
    for wrong in ((b"c", b"d"), (b"c", b"x")):
        with pytest.raises(RunError, match=r"differs from the model: output 'classes', batch of 1"):
            compared(*wrong)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-5), ("mixed_float16", 10 / 1024), ("mixed_bfloat16", 10 / 128)],
)
def test_tolerance_follows_the_coarsest_dtype(dtype, tolerance):
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2, dtype="float32")(L.Dense(3, dtype=dtype)(x)))
    assert verify.default_tolerance(model) == tolerance
    assert verify.default_tolerance(model, "bfloat16") == 10 / 128


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


def test_noise_has_other_sizes_for_each_batch():
    shapes = [batch.inputs["x"].shape for batch in record(model_of((None, 2)))]
    assert shapes == [(1, 96, 2), (3, 64, 2), (32, 32, 2)]


@pytest.mark.parametrize(("factor", "scale"), [(50, 200.0), (0.01, np.exp(0.03))])
def test_scale_of_probabilities_is_that_of_their_logits(factor, scale):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, L.Rescaling(factor)(x))
    signature = Signature(model, None, Postprocessing())
    examples = np.array([[0.0, 0.0, -4.0, 3.0]])
    batch = recording.record(model, signature, examples)[0]
    if scale < 200:  # logits of no size: the largest probability
        scale /= np.sum(np.exp(factor * examples))
    assert batch.scales == {"probabilities": pytest.approx(scale)}


def test_no_noise_for_strings():
    assert message_of(model_of(dtype="string")) == (
        "There is no noise of dtype string for the input 'x'. "
        "Give examples=, inputs that the model can be run on, or verify=False."
    )


def test_model_that_cannot_be_run_on_noise():
    x = keras.Input((None, 2), name="x")
    y = L.Lambda(lambda t: tf.ensure_shape(t, (None, 7, 2)), output_shape=(7, 2))(x)
    message = message_of(keras.Model(x, y, name="net"))
    assert message.startswith("The model 'net' cannot be run on inputs of shape x (1, 96, 2): ")
    assert message.endswith(" Give examples=, inputs that it can be run on.")
