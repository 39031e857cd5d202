"""A stdout or stderr that cannot be written to ends nothing."""

import io
import os
import sys

import pytest

from tfnorm import output


class Failing(io.StringIO):
    def write(self, *text):
        raise BrokenPipeError(32, "Broken pipe")

    flush = isatty = write


def test_streams_that_fail_are_written_to_in_vain(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (Failing(), closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with output.tolerated():
            print("to nobody", flush=True)
            print("to nobody", file=sys.stderr)
            sys.stdout.writelines(["a", "b"])
            assert sys.stdout.isatty() is False
        assert sys.stdout is stream


def test_others_get_everything(capsys):
    with output.tolerated():
        print("to somebody")
        assert sys.stdout.encoding.lower().startswith("utf")
    assert capsys.readouterr().out == "to somebody\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux'")
def test_what_a_full_disk_did_not_take_is_not_tried_again_at_exit():
    with open("/dev/full", "w") as full:
        output.Tolerant(full).write("text")
        output._empty(full)
        full.flush()
