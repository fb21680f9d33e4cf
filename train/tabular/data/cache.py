"""The prepared data as two files: `processed_data.npz`, the arrays, and `processed_data.json`.

The JSON is the commit record: it is written last and holds the SHA-256 of the arrays' file.
Nothing is pickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onward.errors import DataError
from onward.system.files import atomic_write, open_plain, read_json
from onward.words.language import _
from train.tabular.data.dataset import Dataset, Rows
from train.tabular.data.npz import check_declared, mapped, write_arrays
from train.tabular.data.prepare import Features, Preprocessing

NPZ_NAME: Final = "processed_data.npz"
JSON_NAME: Final = "processed_data.json"
MAX_JSON_BYTES: Final = 64 << 20  # 10,000 columns take three million
MAX_SAMPLE_ROWS: Final = 1000
_FORMAT_VERSION: Final = 1
_COMPRESSED: Final = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # zstd, LZ4: all of Arrow's
_UNREADABLE: Final = (
    OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
    pa.ArrowException, zipfile.BadZipFile,
)  # fmt: skip


def save(dataset: Dataset, folder: Path) -> tuple[Path, Path]:
    """Write a dataset; the same dataset gives the same bytes.

    Args:
        dataset: The dataset.
        folder: Where to write; made if need be.

    Returns:
        The paths of the arrays and of the JSON.

    Raises:
        OSError: The disk is full or the folder cannot be written.

    Guarantees:
        No second copy of the arrays is made. What a writer leaves that was killed at any moment is
        the old dataset, or `load` refuses it.
    """
    npz, record = folder / NPZ_NAME, folder / JSON_NAME
    arrays = _arrays_of(dataset)

    atomic_write(npz, lambda file: write_arrays(file, arrays))
    document = {
        "format_version": _FORMAT_VERSION,
        "fingerprint": dataset.fingerprint,
        "sha256": _sha256(npz),
        "bytes": npz.stat().st_size,
        "name": dataset.name,
        "source": dataset.source,
        "train_rows": len(dataset.train),
        "val_rows": len(dataset.val),
        "report": list(dataset.report),
        "preprocessing": dataset.preprocessing.to_dict(),
        "sample": _sample_to_text(dataset.sample),
    }
    content = record_to_bytes(document)
    # IMPORTANT: the record is written after the arrays; a crash between the two leaves a record
    # whose hash does not match, never arrays taken for something else.
    atomic_write(record, lambda file: file.write(content))
    return npz, record


def load(folder: Path) -> Dataset:
    """Read what `save` wrote.

    Raises:
        DataError: There is none, or its bytes are not those that were saved; prepare it again.
    """
    npz, record = folder / NPZ_NAME, folder / JSON_NAME
    try:
        document = read_record(record)
        version, expected = document["format_version"], document["sha256"]
        if version != _FORMAT_VERSION:
            raise DataError(
                _("'{path}' has format version {version}, this program reads {own}").format(
                    path=record, version=version, own=_FORMAT_VERSION
                )
            )
        preprocessing = Preprocessing.from_dict(document["preprocessing"])
        # IMPORTANT: it is opened once: what takes its name after it was hashed is another file.
        with open_plain(npz) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise DataError(
                    _("'{path}' is damaged: its sha256 is {found}, not {expected}").format(
                        path=npz, found=found, expected=expected
                    )
                )
            check_declared(file, max_bytes=file.tell())  # `save` compresses nothing
            arrays = mapped(file)
        train = _rows_of(arrays, "train", preprocessing)
        val = _rows_of(arrays, "val", preprocessing)
        return Dataset(
            name=document["name"],
            source=document["source"],
            fingerprint=document["fingerprint"],
            preprocessing=preprocessing,
            train=train,
            val=val,
            report=tuple(document["report"]),
            sample=_sample_of(document),
            folder=folder,
        )
    except FileNotFoundError as error:
        raise DataError(
            _("there is no prepared data: '{path}' is missing").format(path=error.filename)
        ) from error
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(
            _("the prepared data in '{folder}' cannot be read: {error!r}").format(
                folder=folder, error=error
            )
        ) from error


def load_preprocessing(record: Path) -> tuple[Preprocessing, pa.Table]:
    """Read, of the JSON alone, what was fitted, and the sample of raw rows.

    Raises:
        DataError: It is not what `save` writes.
    """
    try:
        document = read_record(record)
        return Preprocessing.from_dict(document["preprocessing"]), _sample_of(document)
    except _UNREADABLE as error:
        raise DataError(
            _("the prepared data's '{path}' cannot be read: {error!r}").format(
                path=record, error=error
            )
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """Return what `processed_data.json` says, of which nothing else is checked.

    Raises:
        OSError, ValueError: It cannot be read, is too long, or is no JSON object.
    """
    document = read_json(path, MAX_JSON_BYTES)
    if not isinstance(document, dict):
        raise ValueError(_("no object"))
    return document


def record_to_bytes(document: dict[str, Any]) -> bytes:
    """Return what `processed_data.json` holds."""
    return json.dumps(document, indent=1).encode()


def _sample_to_text(sample: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, sample.schema) as writer:
        writer.write_table(sample)
    return base64.b64encode(sink.getvalue()).decode()


def _sample_of(document: dict[str, Any]) -> pa.Table:
    """Return the sample that a record holds; older ones have none."""
    content = base64.b64decode(document.get("sample") or "")
    # `save` compresses nothing; what is compressed could unfold to any size.
    if not content or any(magic in content for magic in _COMPRESSED):
        return pa.table({})
    sample = pa.ipc.open_stream(content).read_all()
    sample.validate(full=True)
    return sample.slice(0, MAX_SAMPLE_ROWS)


def _arrays_of(dataset: Dataset) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for part, rows in (("train", dataset.train), ("val", dataset.val)):
        arrays[f"{part}_numeric"] = rows.features.numeric
        arrays[f"{part}_categorical"] = rows.features.categorical
        arrays[f"{part}_target"] = rows.target
    return arrays


def _rows_of(arrays: dict[str, NDArray[Any]], part: str, preprocessing: Preprocessing) -> Rows:
    """Return the rows of a part, which are of the shape that the preprocessing makes."""
    numeric, codes = arrays[f"{part}_numeric"], arrays[f"{part}_categorical"]
    target = arrays[f"{part}_target"]
    num_codes = [feature.num_codes for feature in preprocessing.categorical]
    fits = (
        numeric.dtype == np.float32
        and target.dtype == np.float64
        and codes.dtype.kind in "ui"
        and target.ndim == 1
        and numeric.shape == (len(target), len(preprocessing.numeric))
        and codes.shape == (len(target), len(num_codes))
        and codes.min(initial=0) >= 0
        and (codes.max(axis=0, initial=0) < np.array(num_codes, np.int64)).all()
    )
    if not fits:
        raise ValueError(_("its arrays are not those of its columns"))
    # Older versions wrote such types as torch does not compute with, and others than are made now.
    return Rows(Features(numeric, codes.astype(preprocessing.code_type, copy=False)), target)


def _sha256(path: Path) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
