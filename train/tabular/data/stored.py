"""A run's prepared data among its artifacts: one file, or parts where the way takes no such size.

    data/processed_data.npz             the arrays, or a folder of them as
    data/processed_data.npz/part-00000  and so on, one after the other
    data/processed_data.json            the record; put last. Of parts it says the size

What a record does not say is not there, whatever else lies beside it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from onward.errors import DataError, RequestTooLarge, TooLarge
from onward.run.subject import Download, RunFiles
from onward.system.files import MIN_PART_BYTES, atomic_write, open_plain
from onward.system.streams import chunks_of
from onward.system.untrusted import shown
from onward.words.language import _
from train.tabular.data import cache

log = logging.getLogger(f"onward.{__name__}")

MAX_AUTO_UPLOAD_BYTES = 1 << 30
_PART_BYTES = "part_bytes"  # in a record: the arrays are parts of that size, the last one the rest


def upload(folder: Path, upload_data: str, files: RunFiles) -> None:
    """Store the prepared data with the run, so that a resume elsewhere needs nothing else.

    The small JSON always goes, the arrays as `upload_data` says.

    Args:
        folder: The cache folder of the data.
        upload_data: "yes", "no", or "auto": up to 1 GiB.
        files: Those of the run.
    """
    arrays = folder / cache.NPZ_NAME
    num_bytes = arrays.stat().st_size
    record = cache.read_record(folder / cache.JSON_NAME)
    names = files.names("")
    has_arrays = cache.NPZ_NAME in names
    has_parts = has_arrays and any(n.startswith("part-") for n in files.names(cache.NPZ_NAME))
    part_bytes = _stored_part_bytes(record, files) if has_parts else 0
    if part_bytes:
        log.debug("the data is stored already, in parts of %d bytes", part_bytes)
    elif upload_data == "yes" or (upload_data == "auto" and num_bytes <= MAX_AUTO_UPLOAD_BYTES):
        # IMPORTANT: a folder and a file of the same name are one too many for a server with files.
        may_cut = has_parts or not has_arrays
        try:
            part_bytes = _put_arrays(arrays, num_bytes if has_parts else 0, may_cut, files)
        except RequestTooLarge as error:
            log.warning(
                _("The prepared data (%.1f MB) is not uploaded: %s. Until then a resume on another "
                  "machine will need the raw table"),
                num_bytes / 1e6, error,
            )  # fmt: skip
    else:
        log.info(
            _(
                "The prepared data (%.1f MB) is not uploaded (upload_data=%s): a resume on another "
                "machine will need the raw table"
            ),
            num_bytes / 1e6,
            upload_data,
        )
    _put_record(folder, record, part_bytes, files)


def fetch(folder: Path, download: Download) -> None:
    """Fetch a run's prepared data; of the arrays no more than their record says they have.

    Args:
        folder: Where to put it.
        download: As in `RunFiles`.

    Raises:
        FileNotFoundError: The run has none.
        DataError: It is longer than it may be, or than the disk has room for.
    """
    path, npz = folder / cache.JSON_NAME, folder / cache.NPZ_NAME
    try:
        download(cache.JSON_NAME, path, cache.MAX_JSON_BYTES)
        record = cache.read_record(path)
        num_bytes = record.get("bytes")
        free = shutil.disk_usage(folder).free
        if not isinstance(num_bytes, int) or not 0 <= num_bytes <= free:
            raise DataError(
                _(
                    "the run's data is not used: it has {num_bytes} bytes by its record, and the "
                    "disk of '{folder}' has {free:,} free"
                ).format(num_bytes=shown(str(num_bytes), 30), folder=folder, free=free)
            )
        part_bytes = _part_bytes_of(record)
        if part_bytes:
            atomic_write(npz, lambda file: _join(file, num_bytes, part_bytes, npz, download))
        else:
            download(cache.NPZ_NAME, npz, num_bytes)
    except (TooLarge, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_("the run's data is not used: {error}").format(error=error)) from error


def _part_bytes_of(record: Mapping[str, Any]) -> int:
    """Return of which size the parts are that a record tells of; 0 if it tells of none.

    Raises:
        ValueError: It is no size that this program cuts: the parts might be without number.
    """
    part_bytes = record.get(_PART_BYTES, 0)
    if type(part_bytes) is not int or not (part_bytes == 0 or part_bytes >= MIN_PART_BYTES):
        found = shown(str(part_bytes), 30)
        raise ValueError(_("its record says parts of {found} bytes").format(found=found))
    return part_bytes


def _parts(num_bytes: int, part_bytes: int) -> Iterator[tuple[str, int]]:
    """Yield name and size of each part."""
    for number, start in enumerate(range(0, num_bytes, part_bytes)):
        yield f"part-{number:05d}", min(part_bytes, num_bytes - start)


def _join(file: BinaryIO, num_bytes: int, part_bytes: int, npz: Path, download: Download) -> None:
    """Write the arrays to the open `file`, which will be `npz`: each part of its size, in order."""
    fetched = npz.with_name(f"{npz.name}.part")
    try:
        for name, size in _parts(num_bytes, part_bytes):
            download(f"{cache.NPZ_NAME}/{name}", fetched, size)
            with open_plain(fetched) as part:
                num_joined = sum(file.write(chunk) for chunk in chunks_of(part))
            if num_joined != size:
                raise ValueError(
                    _("'{path}' has {found:,} bytes, and {expected:,} by its record").format(
                        path=f"data/{cache.NPZ_NAME}/{name}", found=num_joined, expected=size
                    )
                )
    finally:
        fetched.unlink(missing_ok=True)


def _stored_part_bytes(record: Mapping[str, Any], files: RunFiles) -> int:
    """Return the size of the parts in which this very data is stored; 0 if it is not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / cache.JSON_NAME
        try:
            files.download(cache.JSON_NAME, path, cache.MAX_JSON_BYTES)
            found = cache.read_record(path)
            is_same = all(found.get(key) == record[key] for key in ("sha256", "bytes"))
            return _part_bytes_of(found) if is_same else 0
        except (FileNotFoundError, ValueError) as error:
            log.debug("the stored record counts as none: %s", error)
            return 0


def _put_arrays(arrays: Path, part_bytes: int, may_cut: bool, files: RunFiles) -> int:
    """Store the arrays; return the size of their parts, 0 if they are one file.

    Args:
        arrays: The file.
        part_bytes: The size to try first; 0: as one file.
        may_cut: Whether there may be parts.
        files: Those of the run.

    Raises:
        RequestTooLarge: They do not go through, nor would parts.
    """
    num_bytes = arrays.stat().st_size
    while True:
        part_bytes = max(part_bytes, MIN_PART_BYTES) if part_bytes else 0
        try:
            if part_bytes:
                _put_parts(arrays, num_bytes, part_bytes, files)
            else:
                files.put(arrays, "")
            return part_bytes
        except RequestTooLarge:
            part_bytes = files.smaller(part_bytes or num_bytes) if may_cut else 0
            if not part_bytes:
                raise


def _put_parts(arrays: Path, num_bytes: int, part_bytes: int, files: RunFiles) -> None:
    """Store the arrays in parts; of those there is one at a time on this disk."""
    with (
        open_plain(arrays) as file,
        tempfile.TemporaryDirectory(dir=arrays.parent, prefix="sent-") as folder,
    ):
        for name, size in _parts(num_bytes, part_bytes):
            part = Path(folder) / name
            with part.open("wb") as out:
                for start in range(0, size, MIN_PART_BYTES):
                    out.write(file.read(min(MIN_PART_BYTES, size - start)))
            files.put(part, cache.NPZ_NAME)
            part.unlink()


def _put_record(folder: Path, record: Mapping[str, Any], part_bytes: int, files: RunFiles) -> None:
    """Store the record, which makes data of the arrays: of parts it tells, else it is as it was.

    What was fetched from another run's parts still tells of those.
    """
    if record.get(_PART_BYTES, 0) == part_bytes:
        files.put(folder / cache.JSON_NAME, "")
        return
    told = {key: value for key, value in record.items() if key != _PART_BYTES}
    if part_bytes:
        told[_PART_BYTES] = part_bytes
    with tempfile.TemporaryDirectory(dir=folder, prefix="sent-") as private:
        path = Path(private) / cache.JSON_NAME
        path.write_bytes(cache.record_to_bytes(told))
        files.put(path, "")
