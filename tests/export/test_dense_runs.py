"""Exports of segmentation and detection runs: uint8 images of any size to classes or boxes."""

import importlib.util
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import tasks, training
from tfnorm.boxes import paste
from tfnorm.errors import RunError
from tfnorm.export import saved_model
from tfnorm.export.__main__ import main
from tfnorm.export.formats import FORMATS
from tfnorm.export.verify import RUNTIMES, answers
from tfnorm.serving import ClassMap

MODELS = {
    "segmentation": "unet", "detection": "retinanet", "instance_segmentation": "mask_rcnn",
}  # fmt: skip
OPTIONS = {
    "segmentation": {"head_width": 16},
    "detection": {"min_level": 2, "max_level": 3, "head_width": 16, "head_convolutions": 1},
    "instance_segmentation": {
        "min_level": 2,
        "max_level": 3,
        "head_width": 16,
        "head_convolutions": 1,
        "fc_width": 16,
        "anchor_size": 4.0,
        "canonical_level": 5,
        "regions": 8,
        "proposals": 40,
    },
}
# What suppresses the boxes of a detector is not in every format.
WRITTEN = {
    "segmentation": ("litert", "onnx"), "detection": ("onnx",), "instance_segmentation": (),
}  # fmt: skip


def others(task):
    """Formats beside the SavedModel that a task is written in here, and are installed."""
    return [f for f in WRITTEN[task] if all(map(importlib.util.find_spec, FORMATS[f].modules))]


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """Task, model and export of a run whose weights are random: (task, model, path, printed)."""
    folder = tmp_path_factory.mktemp(request.param)
    config = training.Config(
        task=request.param, model=MODELS[request.param], backbone="resnet8", width=16,
        model_options=OPTIONS[request.param], norm="mabn", data_dir=str(folder / "data"),
        train_examples=4, test_split="test[:3]", replica_batch_size=2, steps=1, warmup_epochs=0.0,
        model_dir=str(folder / "run"), image_size="48,64",
    )  # fmt: skip
    training.train(config, validate=False)
    load = training.load_run

    def randomized(directory):
        model, config, metrics = load(directory)
        rng = np.random.default_rng(7)
        for variable in model.variables:
            if "moving" in variable.path or "gamma" in variable.path:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
            elif "class_logits_dense/kernel" in variable.path:
                variable.assign(rng.normal(0, 0.3, variable.shape))
            elif "mask_predictions/kernel" in variable.path:
                variable.assign(rng.normal(0, 0.5, variable.shape))
            elif "predictions/bias" in variable.path:
                variable.assign(rng.normal(-2, 1, variable.shape) * ("class" in variable.path))
            elif "predictions/kernel" in variable.path:
                variable.assign(rng.normal(0, 0.08, variable.shape))
        return model, config, metrics

    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(training, "load_run", randomized)
        patch.setattr("builtins.print", lambda *args, **kwargs: printed.append(str(args[0])))
        written = ",".join(["saved_model", *others(request.param)])
        arguments = [f"--model_dir={config.model_dir}", f"--directory={folder / 'out'}"]
        arguments += [f"--format={written}"]
        code = main(["export", *arguments])
    assert code == 0
    model = randomized(config.model_dir)[0]
    return tasks.load(config), model, folder / "out" / "1", "\n".join(printed)


def test_answers_as_an_evaluation_does(exported, rng):
    task, model, path, _ = exported
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    channels = task.dataset.image_shape[-1]
    for size in ((37, 90), (80, 31), (48, 64)):
        images = rng.integers(256, size=(2, *size, channels), dtype=np.uint8)
        answer = {name: y.numpy() for name, y in serve(image=tf.constant(images)).items()}
        example = {
            "image": tf.constant(images),
            "mask": tf.zeros((2, *size), tf.int32),
            "instances": tf.zeros((2, *size), tf.int32),
            "boxes": tf.zeros((2, 1, 4)),
            "classes": tf.zeros((2, 1), tf.int32),
        }
        needed = {*task.needed} | ({"boxes", "classes"} if "instances" in task.needed else set())
        example = {name: example[name] for name in needed}
        batch = task.transform(training=False)(example, tf.zeros((2, 2), tf.int64))
        outputs = model(batch["image"], training=False)
        if task.evaluator() is None:
            assert set(answer) == {"classes"}
            assert answer["classes"].shape == images.shape[:3]
            assert answer["classes"].dtype == np.int32
            assert len(np.unique(answer["classes"])) > 2
            assert np.mean(answer["classes"] == np.argmax(outputs, -1)) > 0.999
            continue
        expected = task._detected(outputs, batch)
        masks = {"masks"} & set(expected)
        assert set(answer) == {"boxes", "classes", "scores", "count"} | masks
        assert answer["boxes"].shape == (2, 100, 4)
        assert (answer["count"] > 3).all()
        assert (answer["boxes"] <= [*size, *size]).all() and (answer["boxes"] >= 0).all()
        assert answer["boxes"][..., 2].max() > 0.8 * size[0]
        assert answer["boxes"][..., 3].max() > 0.8 * size[1]
        if masks:
            assert answer["masks"].shape == (2, 100, *size) and answer["masks"].dtype == np.uint8
            _agree(answer, {name: y.numpy() for name, y in expected.items()}, size)
            continue
        np.testing.assert_array_equal(answer["count"], expected["count"])
        np.testing.assert_array_equal(answer["classes"], expected["classes"])
        np.testing.assert_allclose(answer["scores"], expected["scores"], atol=1e-4)
        np.testing.assert_allclose(answer["boxes"], expected["boxes"], atol=0.02)


def _agree(answer, expected, size):
    """Objects are those of an evaluation and so are the pixels of their masks, but for ties."""
    same = differ = pixels = 0
    for image, count in enumerate(answer["count"]):
        own = expected["count"][image]
        pasted = paste(expected["masks"][image], expected["frames"][image], size).numpy() >= 0.5
        for row in range(count):
            alike = [
                np.abs(answer["boxes"][image, row] - expected["boxes"][image, :own]).max(-1) < 0.02,
                np.abs(answer["scores"][image, row] - expected["scores"][image, :own]) < 1e-4,
                answer["classes"][image, row] == expected["classes"][image, :own],
            ]
            (found,) = np.nonzero(np.all(alike, 0))
            same += len(found) > 0
            for place in found[:1]:
                differ += np.sum(pasted[place] != answer["masks"][image, row])
                pixels += np.sum(pasted[place])
    # Its weights are random, and the best hundred of what it proposes are often nearly equal.
    assert same >= 0.85 * answer["count"].sum()
    assert pixels > 100 and differ < 0.01 * pixels


def test_is_verified_and_has_no_normalizer_left(exported):
    task, _, _, printed = exported
    ((folded, of),) = re.findall(r"(\d+) of (\d+) normalizers folded", printed)
    assert folded == of and int(of) >= 9
    runtimes = "".join(
        f", {RUNTIMES[x]}" for f in others(name_of(task)) for x in FORMATS[f].runtimes
    )
    assert (
        "verified without tfnorm and Keras on batches of 1, 3 by tf.saved_model.load, "
        f"TensorFlow's C API{runtimes}: largest difference "
    ) in printed


def name_of(task):
    headlines = {"miou": "segmentation", "ap": "detection", "mask_ap": "instance_segmentation"}
    return headlines[task.headline]


def test_other_formats_take_images_of_any_size(exported, rng):
    """Of segmentation; a detector resizes its images anyway, in the comparison as well."""
    task, _, path, _ = exported
    if task.headline != "miou" or not others("segmentation"):
        pytest.skip("of segmentation, in formats that are installed")
    sizes = {"a": (1, 37, 90, 3), "b": (2, 80, 31, 3)}
    images = {x: {"image": rng.integers(256, size=sizes[x], dtype=np.uint8)} for x in sizes}
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    for format in others("segmentation"):
        found = answers(*FORMATS[format].runtimes, path, images)
        for key, given in images.items():
            expected = serve(**{k: tf.constant(v) for k, v in given.items()})["classes"].numpy()
            assert len(np.unique(expected)) > 2
            assert np.mean(found[key, "classes"] == expected) > 0.999


def test_formats_that_cannot_suppress_boxes(exported, tmp_path, capsys):
    task, _, path, _ = exported
    format = {"ap": "litert", "mask_ap": "onnx"}.get(task.headline)
    if not format or not all(map(importlib.util.find_spec, FORMATS[format].modules)):
        pytest.skip("of detectors, in a format that is installed")
    run = f"--model_dir={path.parent.parent / 'run'}"
    assert main(["export", run, f"--directory={tmp_path}", f"--format={format}", "--noverify"]) == 1
    error = capsys.readouterr().err
    start = f"tfnorm: error: The model cannot be converted to {format}: "
    assert error.startswith(start) and error.count("\n") == 1
    assert (
        "cannot suppress overlapping boxes" in error and "Choose the format saved_model." in error
    )
    assert list(tmp_path.iterdir()) == []


def test_no_normalizer_is_in_the_graph(exported):
    task, _, path, _ = exported
    graph = tf.saved_model.load(str(path)).signatures["serving_default"].graph.as_graph_def()
    inner = (node for function in graph.library.function for node in function.node_def)
    names = {node.op for node in (*graph.node, *inner)}
    assert "Conv2D" in names
    of_norms = {"Rsqrt", "FusedBatchNormV3", "Sqrt"}
    if task.headline == "mask_ap":  # A region's level follows from the root of its area.
        of_norms -= {"Sqrt"}
    assert not names & of_norms


def test_the_card_says_what_it_is(exported):
    task, _, path, _ = exported
    card = json.loads((path / "assets.extra" / "model_card.json").read_text())
    (image,) = card["signature"]["inputs"]
    assert (image["dtype"], image["shape"][:3]) == ("uint8", [None] * 3)
    text = (path / "assets.extra" / "model_card.md").read_text()
    if task.evaluator() is None:
        assert "| returns | the number of the class of each pixel, counted from 0 |" in text
        assert card["postprocessing"]["label_names"] == list(task.dataset.mask_classes.names)
    else:
        assert "ymin, xmin, ymax, xmax in pixels of the image that was sent, best first" in text
        assert card["postprocessing"]["label_names"] == list(task.dataset.label_names)
        assert card["preprocessing"]["resize"].endswith("padded at bottom and right onto 48×64")


def test_flags_of_classifiers_are_refused(exported, tmp_path, capsys):
    _, _, path, _ = exported
    run = f"--model_dir={path.parent.parent / 'run'}"
    for flag in ("--top_k=3", "--nosoftmax", "--labels=labels.txt", "--mean=0.5"):
        assert main(["export", run, f"--directory={tmp_path}", flag]) == 2
        error = capsys.readouterr().err
        name = flag.removeprefix("--no").removeprefix("--").partition("=")[0]
        assert error.startswith(f"tfnorm: error: --{name} is ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_network_itself_where_it_is_asked_for(exported, tmp_path, capsys):
    """With precise statistics, of as many whole images at once as an evaluation takes."""
    task, _, path, _ = exported
    run = f"--model_dir={path.parent.parent / 'run'}"
    flags = ["--nouint8_images", "--noverify", "--recalibrate_steps=1"]
    assert main(["export", run, f"--directory={tmp_path}", *flags]) == 0
    images = min(task.largest_evaluation_batch or 128, task.dataset.num_train)
    assert f"Recalibrating on batches of {images} training images" in capsys.readouterr().out
    card = json.loads((tmp_path / "1/assets.extra/model_card.json").read_text())
    assert card["preprocessing"] is None and card["postprocessing"] is None
    assert card["signature"]["inputs"][0]["dtype"] == "float32"


def test_what_postprocessing_hides_is_compared(randomized, monkeypatch, tmp_path):
    """Logits of a twentieth more: every pixel keeps its class."""
    x = keras.Input((None, None, 3), name="image")
    model = randomized(keras.Model(x, keras.layers.Conv2D(3, 1, name="logits")(x)))
    fold = saved_model.fold

    def wrong(model):
        folded, report = fold(model)
        for variable in folded.variables:
            variable.assign(1.05 * variable)
        return folded, report

    options = {"postprocessing": ClassMap("abc"), "batch_sizes": [1]}
    right = saved_model.export_saved_model(model, tmp_path / "right", **options)
    assert right.verification.difference < 1e-5
    monkeypatch.setattr(saved_model, "fold", wrong)
    with pytest.raises(RunError) as error:
        saved_model.export_saved_model(model, tmp_path / "wrong", **options)
    start = "The folded model, before postprocessing, differs from the model: output 'logits', "
    assert str(error.value).startswith(start)
    assert not list((tmp_path / "wrong").glob("*"))
