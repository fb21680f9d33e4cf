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

from train.data.dataset import Dataset, Rows
from train.data.prepare import Features, Preprocessing
from train.errors import DataError
from train.files import atomic_write, open_plain
from train.language import _

NPZ_NAME: Final = "processed_data.npz"
JSON_NAME: Final = "processed_data.json"
_FORMAT_VERSION: Final = 1


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
        What a writer leaves that was killed at any moment is the old dataset, or `load` refuses
        it.
    """
    npz, record = folder / NPZ_NAME, folder / JSON_NAME
    arrays = _arrays_of(dataset)

    atomic_write(npz, lambda file: np.savez(file, allow_pickle=False, **arrays))
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
    content = json.dumps(document, indent=1).encode()
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
        document: dict[str, Any] = read_record(record)
        version, expected = document["format_version"], document["sha256"]
        if version != _FORMAT_VERSION:
            raise DataError(
                _("'{path}' has format version {version}, this program reads {own}").format(
                    path=record, version=version, own=_FORMAT_VERSION
                )
            )
        found = _sha256(npz)
        if found != expected:
            raise DataError(
                _("'{path}' is damaged: its sha256 is {found}, not {expected}").format(
                    path=npz, found=found, expected=expected
                )
            )
        with np.load(npz, allow_pickle=False) as arrays:
            train, val = _rows_of(arrays, "train"), _rows_of(arrays, "val")
        return Dataset(
            name=document["name"],
            source=document["source"],
            fingerprint=document["fingerprint"],
            preprocessing=Preprocessing.from_dict(document["preprocessing"]),
            train=train,
            val=val,
            report=tuple(document["report"]),
            sample=_sample_of(document),
        )
    except FileNotFoundError as error:
        raise DataError(
            _("there is no prepared data: '{path}' is missing").format(path=error.filename)
        ) from error
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            _("the prepared data's '{path}' cannot be read: {error!r}").format(
                path=record, error=error
            )
        ) from error


def read_record(record: Path) -> Any:
    """Return what `processed_data.json` says."""
    with open_plain(record) as file:
        return json.loads(file.read())


def _sample_to_text(sample: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, sample.schema) as writer:
        writer.write_table(sample)
    return base64.b64encode(sink.getvalue()).decode()


def _sample_of(document: dict[str, Any]) -> pa.Table:
    """Return the sample that a record holds; older ones have none."""
    text = document.get("sample")
    return pa.ipc.open_stream(base64.b64decode(text)).read_all() if text else pa.table({})


def _arrays_of(dataset: Dataset) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for part, rows in (("train", dataset.train), ("val", dataset.val)):
        codes = rows.features.categorical
        smallest = np.min_scalar_type(codes.max(initial=0))  # codes fit a byte or two, not eight
        arrays[f"{part}_numeric"] = rows.features.numeric
        arrays[f"{part}_categorical"] = codes.astype(smallest)
        arrays[f"{part}_target"] = rows.target
    return arrays


def _rows_of(arrays: Any, part: str) -> Rows:
    codes = arrays[f"{part}_categorical"].astype(np.int64)
    return Rows(Features(arrays[f"{part}_numeric"], codes), arrays[f"{part}_target"])


def _sha256(path: Path) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
