import pathlib
import runpy

ROOT = pathlib.Path(__file__).parents[2]


def test_quickstart_trains_exports_and_predicts(tmp_path, capsys):
    path = ROOT / "examples" / "quickstart.py"
    assert len(path.read_text().splitlines()) <= 60
    accuracy = runpy.run_path(str(path))["main"](str(tmp_path / "export"), epochs=3)
    assert accuracy > 0.5
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "export" / "1" / "saved_model.pb").exists()
