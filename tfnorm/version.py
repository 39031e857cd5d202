"""The version of tfnorm, in its one place: setup.py and the records of runs read it here."""

__version__ = "0.1.0"
