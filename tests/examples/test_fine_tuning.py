import pathlib
import re
import subprocess
import sys

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def test_fine_tuning_converts_trains_recalibrates_and_exports(tmp_path):
    path = EXAMPLES / "fine_tuning.py"
    assert len(path.read_text().splitlines()) <= 80
    options = ["--network=MobileNet", "--image_size=32", "--steps=2", "--recalibrate_steps=1"]
    done = subprocess.run(
        [sys.executable, path, *options, f"--directory={tmp_path / 'export'}"],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "\n27 of 27 normalizers are cbn now; largest relative difference" in done.stdout
    assert re.search(r"\ntest accuracy 0\.\d{3}\n", done.stdout)
    assert f"\n27 normalizers folded, wrote {tmp_path / 'export' / '1'}\n" in done.stdout
    assert (tmp_path / "export" / "1" / "saved_model.pb").exists()
