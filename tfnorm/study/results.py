"""The file of results: one JSON line a run, only ever appended to."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from tfnorm.errors import RunError, UserError
from tfnorm.files import finite


class Results:
    """The runs recorded in one JSON-lines file.

    A run that was killed while it wrote leaves half a line at the end: it counts as not written,
    and the next append replaces it. A broken line anywhere else is someone's edit and an error.

    Args:
        path: The file; it need not exist yet.

    Raises:
        UserError: It cannot be read, or a line before the last is not a JSON object with a `hash`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self._records: dict[str, dict] = {}
        self._whole: int | None = None  # where the whole lines end, if half a line follows
        try:
            self._read(self.path.read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(
                f"cannot read the results in {self.path} ({error.strerror}); move it away, or "
                "choose another --output_dir"
            ) from error

    def _read(self, content: bytes) -> None:
        whole = content.rfind(b"\n") + 1
        self._whole = whole if whole < len(content) else None
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                self._records[record["hash"]] = record
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"Line {number} of {self.path} is not the record of a run. Mend or delete that "
                    "line (its run is then done again), or choose another --output_dir."
                ) from None

    def __len__(self) -> int:
        return len(self._records)

    def get(self, identity: str) -> dict | None:
        """The last record of the run with this hash, or None."""
        return self._records.get(identity)

    def all(self) -> list[dict]:
        """The last record of each run."""
        return list(self._records.values())

    def select(self, identities: Sequence[str]) -> list[dict]:
        """The records of these runs that are there, in the order asked for."""
        return [self._records[i] for i in identities if i in self._records]

    def check(self, identities: Sequence[str], fields: Sequence[str]) -> None:
        """Sees to it that what is there of these runs has all that tables and plots read.

        Raises:
            UserError: A field is missing.
        """
        for record in self.select(identities):
            missing = [name for name in fields if name not in record]
            if record.get("error") is None and not isinstance(record.get("result"), dict):
                missing = missing or ["result"]
            if missing:
                raise UserError(
                    f"the record of run {record['hash']} in {self.path} lacks "
                    f"{', '.join(missing)}; delete its line: the run is then done again"
                )

    def append(self, record: Mapping) -> None:
        """Adds a run at the end of the file, on the disk when this returns.

        Numbers that JSON has no word for (a loss that is NaN) are written as null.

        Raises:
            RunError: The file cannot be written, as on a full disk.
        """
        record = json.loads(json.dumps(finite(record)))
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            self._write(line)
        except OSError as error:
            raise RunError(
                f"cannot write {self.path} ({error.strerror or error}); the same command goes on "
                "from the run's last checkpoint"
            ) from error
        self._records[record["hash"]] = record

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            if self._whole is not None:
                file.truncate(self._whole)
                self._whole = None
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
