"""Where a run's data comes from: the cache, the run's artifacts, or the raw table."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pyarrow as pa

from onward.errors import DataError, DataNotFound, TooLarge
from onward.run.subject import Download
from onward.system import untrusted
from onward.system.files import make_folder
from onward.words.language import _
from train.tabular.data import cache
from train.tabular.data.dataset import Dataset, prepare, source_fingerprint
from train.tabular.data.prepare import Preprocessing
from train.tabular.data.stored import fetch
from train.tabular.options import Config

log = logging.getLogger(f"onward.{__name__}")


def cache_folder(root: Path, fingerprint: str, run_id: str = "") -> Path:
    """Return where the prepared data of that fingerprint is cached.

    Args:
        root: The folder under which the cache lies.
        fingerprint: Of the data.
        run_id: The run from which it was fetched; default: it was prepared here. A fingerprint is
            that of the raw table, so that what a run calls by it is believed of that run alone.

    Raises:
        UnsafeValue: It is no fingerprint: the tag or checkpoint that has it is not of this program.
    """
    name = untrusted.fingerprint(fingerprint, _("data fingerprint"))[:32]
    return root / "data" / (f"{name}-{run_id}" if run_id else name)


def prepare_cached(config: Config, root: Path, preprocessing: Preprocessing | None) -> Dataset:
    """Return the data that the options name, preprocessed now or taken from the cache.

    Args:
        config: The options; those of the group Data count.
        root: The folder under which the cache lies.
        preprocessing: Use this fitted one; default: fit a new one.

    Raises:
        DataError: The table is missing, cannot be read, or cannot be trained on.
    """
    fingerprint = source_fingerprint(config, preprocessing)
    folder = cache_folder(root, fingerprint)
    found = _find_cached(folder)
    if found is not None:
        log.info(_("Data '%s' is prepared already: %s"), found.name, folder)
        return found
    log.info(_("Preparing data '%s' …"), config.data)
    make_folder(folder)
    cache.save(prepare(config, preprocessing, fingerprint=fingerprint, folder=folder), folder)
    return cache.load(folder)


def recover(
    config: Config, root: Path, fingerprint: str, download: Download, run_id: str
) -> Dataset:
    """Return the data of a run that is resumed: cached here, in its artifacts, or made anew.

    Args:
        config: The run's options.
        root: The folder under which the cache lies.
        fingerprint: What the data must be.
        download: Fetches a file of the run's `data/`; raises FileNotFoundError if there is none.
        run_id: The run.

    Raises:
        DataError: It is in none of the places, or the raw table has changed.
    """
    folder = cache_folder(root, fingerprint)
    fetched = cache_folder(root, fingerprint, run_id)
    found = _find_cached(folder) or _find_cached(fetched)
    if found is None:
        try:
            fetch(fetched, download)
            found = cache.load(fetched)
            log.info(_("Data '%s' was fetched from the run's artifacts"), found.name)
        except FileNotFoundError:
            return _remake(config, fetched, fingerprint)
    if found.fingerprint != fingerprint:
        raise DataError(
            _(
                "the prepared data in '{folder}' is of another table: its fingerprint is {found}…, "
                "the run's is {expected}…. Delete that folder"
            ).format(folder=found.folder, found=found.fingerprint[:12], expected=fingerprint[:12])
        )
    return found


def recover_preprocessing(
    root: Path, fingerprint: str, download: Download
) -> tuple[Preprocessing, pa.Table]:
    """Return of a run's data what was fitted, and a sample of raw rows: cached here, or fetched.

    Args:
        root: The folder under which the cache lies.
        fingerprint: Of the data.
        download: As for `recover`.

    Raises:
        DataError: It is in neither place.
    """
    cached = cache_folder(root, fingerprint) / cache.JSON_NAME
    if cached.exists():
        return cache.load_preprocessing(cached)
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / cache.JSON_NAME
        try:
            download(cache.JSON_NAME, fetched, cache.MAX_JSON_BYTES)
        except TooLarge as error:
            raise DataError(_("the run's data is not used: {error}").format(error=error)) from error
        except FileNotFoundError as error:
            raise DataError(
                _("the run has no artifact data/{name}, which says how rows are prepared").format(
                    name=cache.JSON_NAME
                )
            ) from error
        return cache.load_preprocessing(fetched)


def _find_cached(folder: Path) -> Dataset | None:
    try:
        return cache.load(folder)
    except DataError as error:
        if (folder / cache.NPZ_NAME).exists():
            log.warning(_("The cached data is not used: %s"), error)
        return None


def _saved_preprocessing(path: Path, fingerprint: str) -> Preprocessing | None:
    """Return what was fitted when the data was prepared first, if the run's JSON is here."""
    try:
        document = cache.read_record(path)
        is_it = document["fingerprint"] == fingerprint
        return Preprocessing.from_dict(document["preprocessing"]) if is_it else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remake(config: Config, folder: Path, fingerprint: str) -> Dataset:
    """Prepare the raw table again, and make sure that it is still the same.

    Args:
        config: The run's options.
        folder: The run's, where its JSON lies if there is one.
        fingerprint: What it must be.
    """
    try:
        fitted = _saved_preprocessing(folder / cache.JSON_NAME, fingerprint)
        # A fork may have used another run's; older versions kept an index.
        for kept in (config, config.replace(keep_index=True)):
            for preprocessing in (None, fitted):
                if source_fingerprint(kept, preprocessing) == fingerprint:
                    # By what was fitted then: an older version may have read the table otherwise.
                    make_folder(folder)
                    fitted = fitted or preprocessing
                    dataset = prepare(kept, fitted, fingerprint=fingerprint, folder=folder)
                    cache.save(dataset, folder)
                    return cache.load(folder)
    except DataNotFound as error:
        raise DataError(
            _(
                "the prepared data of this run was not uploaded, and the raw table is not here "
                "either: searched '{searched}'. Pass data=<path of the same file>"
            ).format(searched=error.searched)
        ) from error
    raise DataError(
        _(
            "data '{data}' is not what the run was trained on (fingerprint {fingerprint}…): pass "
            "data=<path of the same file>, or fork to train on another"
        ).format(data=config.data, fingerprint=fingerprint[:12])
    )
