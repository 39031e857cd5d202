"""Directories of this machine, and of no other."""

import pathlib

import keras
import pytest

import tfnorm
from tfnorm import paths, training
from tfnorm.errors import UserError


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("runs/a", "runs/a"),
        ("file:///tmp/a b", "/tmp/a b"),
        ("file://localhost/tmp/a", "/tmp/a"),
        ("file:/tmp/a", "/tmp/a"),
        ("~/a", str(pathlib.Path.home() / "a")),
        ("lr:0.1/c", "lr:0.1/c"),
        (pathlib.Path("/tmp/a"), "/tmp/a"),
    ],
)
def test_local_paths(given, path):
    assert paths.local(given, "model_dir") == pathlib.Path(path)


def test_a_home_that_is_not_there(monkeypatch):
    with pytest.raises(UserError) as error:
        paths.local("~no.such.user/run", "model_dir")
    assert str(error.value) == (
        "model_dir '~no.such.user/run': the home directory ~no.such.user is that of nobody"
    )

    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", unknown)
    with pytest.raises(UserError) as error:
        paths.local("~/run", "model_dir")
    assert str(error.value) == (
        "model_dir '~/run': the home directory ~ of this user is not known; set HOME"
    )


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://b", "ram://run", "file://host/run"])
def test_what_is_elsewhere_is_refused_before_anything_is_written(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    for name, use in {
        "model_dir": lambda: training.train(training.Config(model_dir=url)),
        "data_dir": lambda: training.train(training.Config(data_dir=url)),
        "directory": lambda: tfnorm.export_saved_model(model, url, verify=False),
    }.items():
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value).startswith(f"{name} '{url}' is not on a file system of this ")
    with pytest.raises(UserError, match=r"^model_dir '"):
        training.load_model(url)
    assert not list(tmp_path.iterdir())


def test_pathlib_has_no_double_slash_left():
    """What pathlib makes of a URL is refused too."""
    with pytest.raises(UserError):
        paths.local(pathlib.Path("gs://bucket/run"), "directory")
