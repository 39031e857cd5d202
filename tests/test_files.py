"""Files are there whole or not at all."""

import pathlib
import subprocess
import sys

import pytest

from tfnorm import files
from tfnorm.errors import RunError
from tfnorm.files import write_text, write_whole

ROOT = pathlib.Path(__file__).parents[1]
WRITER = """
import sys, time
from tfnorm.files import write_whole

def write(aside):
    aside.write_text("half")
    print(aside.name, flush=True)
    time.sleep(60)

write_whole(sys.argv[1], write)
"""


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path):
    """By whoever next writes any file there, after kill -9."""
    command = [sys.executable, "-c", WRITER, tmp_path / "slow.txt"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        draft = writer.stdout.readline().strip()
        assert draft.startswith(files.DRAFT) and draft.endswith("-slow.txt")
        write_text(tmp_path / "other.txt", "whole")
        assert names(tmp_path) == [draft, "other.txt"]
    finally:
        writer.kill()
        writer.wait()
    (tmp_path / f"{files.DRAFT}folder").mkdir()  # Of a checkpoint or an export.
    write_text(tmp_path / "slow.txt", "whole")
    assert names(tmp_path) == ["other.txt", "slow.txt"]


def test_a_failed_write_leaves_the_old_file_and_says_why(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(aside):
        assert aside.suffix == ".txt"  # matplotlib asks the name for the format
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError) as error:
        write_whole(path, fail)
    assert str(error.value) == f"cannot write {path} (No space left on device)"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "old"}


def test_other_errors_are_not_hidden_and_leave_the_old_file_too(tmp_path):
    path = tmp_path / "new" / "file"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "after\udcff")
    assert path.read_text() == "before"
    write_text(path, "after: μ")
    assert path.read_text(encoding="utf-8") == "after: μ"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_folders_made_for_a_write_that_fails_go_again_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for place in ("there", "new", "new/below", "there/new"):
        with pytest.raises(UnicodeEncodeError):
            write_text(tmp_path / place / "file", "after\udcff")
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["there"]


def test_a_draft_that_cannot_be_locked_goes_again(tmp_path, monkeypatch):
    acquire = files.locks.acquire

    def out_of_files(path, wait=False):
        if path.name.startswith(files.DRAFT):
            raise OSError(24, "Too many open files")
        return acquire(path, wait)

    monkeypatch.setattr(files.locks, "acquire", out_of_files)
    with pytest.raises(RunError, match="Too many open files"):
        write_text(tmp_path / "new" / "file", "text")
    assert names(tmp_path) == []


def test_a_draft_that_cannot_be_removed_is_let_go(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_remove", fail)
    with pytest.raises(OSError, match="Input/output"), files.draft(tmp_path) as path:
        pass
    lock = files.locks.acquire(path)
    assert lock is not None
    files.locks.release(lock)


def test_folders_that_another_writer_removes_are_made_again(tmp_path, monkeypatch):
    """One that failed takes those away that it made, and cannot know who is about to use them."""
    acquire, folder = files.locks.acquire, tmp_path / "new"

    def slow(path, wait=False):
        if path == folder and removed:
            removed.pop().rmdir()
        return acquire(path, wait)

    removed = [folder]
    monkeypatch.setattr(files.locks, "acquire", slow)
    write_text(folder / "file", "text")
    assert not removed and names(folder) == ["file"]
    removed = [folder] * 9
    (folder / "file").unlink()
    with pytest.raises(RunError, match="No such file or directory"):
        write_text(folder / "file", "text")


def test_a_folder_that_cannot_be_made_is_an_error_of_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as error:
        write_text(tmp_path / "file" / "below", "text")
    assert str(error.value).startswith(f"cannot write {tmp_path}/file/below (")
