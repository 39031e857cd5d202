"""The card that goes with an export."""

import json

import keras
import numpy as np

import tfnorm
from tfnorm.export import Postprocessing, export_saved_model

L = keras.layers


def card_of(tmp_path, **options):
    x = keras.Input((8, 8, 3), name="image")
    y = tfnorm.layers.BatchRenormalization(name="norm")(L.Conv2D(4, 3, name="conv")(x))
    y = L.GroupNormalization(2, name="last")(y)
    model = keras.Model(x, L.Dense(5, name="logits")(L.GlobalAveragePooling2D()(y)), name="net")
    result = export_saved_model(model, tmp_path, **options)
    folder = result.path / "assets.extra"
    text = (folder / "model_card.md").read_text(encoding="utf-8")
    return json.loads((folder / "model_card.json").read_text(encoding="utf-8")), text, result


def test_says_what_is_known(tmp_path):
    card, text, result = card_of(
        tmp_path,
        postprocessing=Postprocessing(top_k=2, label_names=["Kätzchen", "b", "c", "d", "e"]),
        weights_dtype="float16",
        training={
            "norm": "brn",
            "learning_rate": 0.1,
            "model_dir": str(tmp_path),
            "norm_options": {},
        },
        metrics={"test_accuracy": 0.9771234567, "steps": 7},
    )
    assert card["name"] == "net"
    assert card["norms"] == ["brn", "gn"]
    assert card["formats"] == ["saved_model"]
    assert card["signature"] == {
        "name": "serving_default",
        "inputs": [{"name": "image", "dtype": "float32", "shape": [None, 8, 8, 3]}],
        "outputs": [
            {"name": "classes", "dtype": "string", "shape": [None, 2]},
            {"name": "scores", "dtype": "float32", "shape": [None, 2]},
        ],
    }
    assert card["weights_dtype"] == "float16"
    assert card["training"] == {"norm": "brn", "learning_rate": 0.1, "norm_options": {}}
    assert card["metrics"] == {"test_accuracy": 0.9771234567, "steps": 7}
    assert card["fold"] == result.report.to_dict()
    assert card["verification"] == {
        "runtimes": ["tf.saved_model.load", "TensorFlow's C API"],
        "batch_sizes": [1, 3, 32],
        "difference": result.verification.difference,
        "tolerance": result.verification.tolerance,
        "rounding": result.verification.rounding,
    }
    verification = result.verification
    assert verification.difference < verification.tolerance < 1e-4
    assert verification.rounding > 0
    assert card["versions"]["tfnorm"] == tfnorm.__version__
    assert card["versions"]["keras"] == keras.__version__
    for line in (
        "# net",
        "Normalizers: brn, gn. Formats: saved_model. Kernels stored as float16.",
        "| input | image | float32 | [any, 8, 8, 3] |",
        "| output | classes | string | [any, 2] |",
        "| label_names | Kätzchen, b, c, d, e |",
        "| test_accuracy | 0.977123 |",
        "| learning_rate | 0.1 |",
        "norm        brn   conv",
        "1 of 2 normalizers folded",
    ):
        assert f"\n{line}" in f"\n{text}", line


def test_says_no_more_than_is_known(tmp_path):
    card, text, _ = card_of(tmp_path, verify=False)
    assert card["norms"] == ["brn", "gn"]
    for part in ("preprocessing", "postprocessing", "training", "metrics", "verification"):
        assert card[part] is None
        assert part.capitalize() not in text
    assert "Kernels stored as they were." in text


def test_names_the_normalizers_that_there_are(tmp_path):
    """Not the one that was asked for: a backbone may have others, and a conversion leave some."""
    card, _, _ = card_of(tmp_path, verify=False, training={"norm": "mabn"})
    assert card["norms"] == ["brn", "gn"]
    assert card["training"] == {"norm": "mabn"}


def test_no_place_of_this_machine_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    training = {
        "backbone": f"hub:{tmp_path}",
        "weights": "runs/x",
        "model_dir": "out",
        "data_dir": "data",
        "model": "hub:kaggle://keras/resnet/keras/resnet_18",
        "norm_options": {},
    }
    card, _, _ = card_of(tmp_path, verify=False, training=training)
    assert card["training"] == {
        "model": "hub:kaggle://keras/resnet/keras/resnet_18",
        "norm_options": {},
    }


def test_numbers_that_json_has_no_word_for(tmp_path):
    training = {"momentum": np.float32(0.5)}
    card, _, _ = card_of(tmp_path, verify=False, training=training, metrics={"loss": np.nan})
    assert card["training"] == {"momentum": 0.5}
    assert card["metrics"] == {"loss": None}
