"""MLflow's logged models, and its registry of models.

A logged model is made PENDING, filled, and only then READY. What died on the way is found by the
next try, and deleted.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onward.errors import StoreUnavailable, TrainError, UsageError
from onward.metrics import Point
from onward.system import environment
from onward.system.untrusted import is_path_part
from onward.tracking.client import Tracking
from onward.tracking.record import RunRecord
from onward.tracking.translate import local_path, one_line, translated
from onward.words.language import _

MODEL_NAME = "model"  # so that `runs:/<run ID>/model` is the one that was logged last
# MLflow looks among the run's files for that one first. Where it finds none, its clients of these
# leave an empty file, in place of which it then cannot make the model's folder.
_LEAVE_A_FILE = ("sftp:", "ftp:")
REGISTERED_ALIAS = "newest"  # of a registered model: the version that was registered last
_PACKAGES = ("mlflow", "torch", "numpy", "pandas", "pyarrow")  # what loading a model needs

_FORWARD = '''"""What MLflow loads of a model: its code is in the archive beside this module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("{archive}")))

from {loader} import _load_pyfunc  # noqa: E402, F401
'''


class ServedModel(NamedTuple):
    """What MLflow is told of a model whose files are in a folder.

    Args:
        summary: A sentence on what it takes and returns, in Markdown.
        loader: The module whose `_load_pyfunc` reads the folder.
        columns: Those that it takes, each of any type; (): that is not told.
        example: What it can be given, if that is known.
        model_type: In MLflow's words: "regressor", "classifier", or "".
        reads_tables: Whether `train predict` can use it.
        packages: What it needs, beside what each model does.
    """

    summary: str
    loader: str = ""
    columns: tuple[str, ...] = ()
    example: Any = None
    model_type: str = ""
    reads_tables: bool = False
    packages: tuple[str, ...] = ()


def log_model(
    tracking: Tracking,
    record: RunRecord,
    content: Path,
    served: ServedModel,
    points: Sequence[Point],
    tags: Mapping[str, str],
) -> str:
    """Log a model of the run, that MLflow can serve; return its ID.

    Args:
        tracking: The server.
        record: The run.
        content: The folder that its loader reads; the program's own code goes along.
        served: What is to be said of it.
        points: Metrics of the model: those of its run, with which they are compared.
        tags: What else is to be said of it.

    Raises:
        StoreUnavailable: The server does not answer. Call again later.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.exceptions import MlflowException

    client = tracking.client
    doing = _("logging a model of run '{run_id}'").format(run_id=record.run_id)
    with translated(doing, record.run_id):
        for stale in _models_of(client, record, LoggedModelStatus.PENDING):
            client.delete_logged_model(stale.model_id)
        model = client.create_logged_model(
            record.experiment_id,
            name=MODEL_NAME,
            source_run_id=record.run_id,
            tags=dict(tags),
            params={k: v for k, v in record.params.items() if not k.startswith("train.")},
            model_type=served.model_type,
        )
    _require_empty(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        try:  # what goes wrong here is not the server's
            _save(path, content, served, model)
        except MlflowException as error:
            raise TrainError(
                _("MLflow refuses the model: {reason}").format(reason=one_line(error))
            ) from error
        with translated(doing, record.run_id):
            client.log_model_artifacts(model.model_id, str(path))
            if record.artifact_uri.startswith(_LEAVE_A_FILE):
                client.log_artifact(record.run_id, str(path / "MLmodel"), MODEL_NAME)
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            step = points[-1].step if points else 0
            client.log_outputs(record.run_id, [LoggedModelOutput(model.model_id, step)])
            client.log_batch(record.run_id, metrics=_linked(client, record, model, points))
    return str(model.model_id)


def _require_empty(model: Any) -> None:
    """Refuse a local folder for a new model that holds files: they are somebody's.

    Raises:
        StoreUnavailable: It does.
    """
    folder = local_path(str(model.artifact_location))
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise StoreUnavailable(
            _("the folder '{folder}' that the server names for a new model holds files").format(
                folder=folder
            )
        )


def is_ready(tracking: Tracking, model_id: str) -> bool:
    """Tell whether there is a logged model of that ID, and whole."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.exceptions import MlflowException

    if not is_path_part(model_id):
        return False
    try:
        found = tracking.client.get_logged_model(model_id)
    except MlflowException:
        return False
    return bool(found.status == LoggedModelStatus.READY)


def is_registered(tracking: Tracking, model_id: str, name: str) -> bool:
    """Tell whether a logged model is a version of the registered model `name`."""
    with translated(_("registering model '{name}'").format(name=name)):
        return bool(_versions(tracking.client, name, f"models:/{model_id}"))


def _versions(client: Any, name: str, source: str) -> list[int]:
    """Return the numbers of the versions that were made of `source`."""
    found = client.search_model_versions(f"name = {_quoted(name)}")
    return [int(version.version) for version in found if version.source == source]


def _quoted(name: str) -> str:
    quote = '"' if "'" in name else "'"
    return f"{quote}{name}{quote}"


def register_model(
    tracking: Tracking, record: RunRecord, model_id: str, name: str, tags: Mapping[str, str]
) -> int:
    """Make a logged model the newest version of the registered model `name`; return its number.

    The alias `newest` is moved to it. A model that is registered there already is not again.

    Raises:
        StoreUnavailable: The server does not answer, or has no registry.
        UsageError: The server does not take the name.
    """
    client, source = tracking.client, f"models:/{model_id}"
    doing = _("registering model '{name}'").format(name=name)
    with translated(doing):
        wrong = _make_registered(client, name)
    if wrong:
        raise UsageError(_("{doing} failed: {reason}").format(doing=doing, reason=wrong))
    with translated(doing):
        found = _versions(client, name, source)
        number = max(found, default=0) or int(
            client.create_model_version(
                name, source, run_id=record.run_id, tags=dict(tags), model_id=model_id
            ).version
        )
        client.set_registered_model_alias(name, REGISTERED_ALIAS, str(number))
    return number


def _make_registered(client: Any, name: str) -> str:
    """Make the registered model, if there is none; return what is wrong with its name, if any."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":  # again would not help
            return one_line(error)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return ""


def _linked(client: Any, record: RunRecord, model: Any, points: Sequence[Point]) -> list[Any]:
    """Return metrics of the model on its run's dataset; the run has these very points already."""
    from mlflow.entities import Metric

    inputs = client.get_run(record.run_id).inputs.dataset_inputs
    on = {}
    if inputs:
        dataset = inputs[0].dataset
        on = {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
    return [
        Metric(p.key, p.value, p.timestamp_ms, p.step, model_id=model.model_id, **on)
        for p in points
    ]


def _models_of(client: Any, record: RunRecord, status: Any) -> list[Any]:
    found = client.search_logged_models(
        [record.experiment_id], filter_string=f"source_run_id = '{record.run_id}'"
    )
    return [model for model in found if model.status == status]


def _save(path: Path, content: Path, served: ServedModel, model: Any) -> None:
    """Write what `mlflow models serve` needs to the folder `path`."""
    import mlflow.pyfunc
    from mlflow.models import Model

    loader, code = _pack_code(served.loader, path.with_name("code"))
    pins = environment.versions((*_PACKAGES, *served.packages)).items()
    with _versions_known():
        mlflow.pyfunc.save_model(
            path,
            loader_module=loader,
            data_path=content,
            code_paths=code,
            mlflow_model=Model(model_uuid=model.model_id, model_id=model.model_id),
            pip_requirements=[f"{k}=={v.partition('+')[0]}" for k, v in pins if k != "python"],
            signature=_signature(served.columns) if served.columns else None,
            input_example=served.example,
        )


@contextlib.contextmanager
def _versions_known() -> Iterator[None]:
    """Keep MLflow from reading what each installed package consists of, which takes it 0.4 s.

    It compares the versions of the requirements with those that are installed: these are they.
    """
    from mlflow.utils import requirements_utils

    name = "_MODULES_TO_PACKAGES"
    if getattr(requirements_utils, name, "unknown") is not None:  # read before, or another MLflow
        yield
        return
    setattr(requirements_utils, name, {})
    try:
        yield
    finally:
        setattr(requirements_utils, name, None)


def _pack_code(loader: str, to: Path) -> tuple[str, list[str]]:
    """Pack the code of this library and of the loader's package, and nothing put beside it.

    It is an archive, and a module that imports from it: hundreds of files would be as many
    requests, which takes as many times as long as the server is away.

    Args:
        loader: The module whose `_load_pyfunc` reads a model.
        to: An empty folder.

    Returns:
        The module that MLflow is to import in its place, and the files.
    """
    name = f"load_{loader.replace('.', '_')}"  # of each loader another: Python keeps what it has
    archive, module = to / f"{name}.zip", to / f"{name}.py"
    to.mkdir()
    # Some systems install files that are as old as Unix, of which an archive has no time.
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as packed:
        for package in dict.fromkeys((__name__.partition(".")[0], loader.partition(".")[0])):
            [folder] = importlib.import_module(package).__path__
            for file in sorted(Path(folder).rglob("*")):
                if file.suffix in (".py", ".po") and file.is_file() and not file.is_symlink():
                    packed.write(file, f"{package}/{file.relative_to(folder).as_posix()}")
    module.write_text(_FORWARD.format(archive=archive.name, loader=loader))
    return name, [str(archive), str(module)]


def _signature(columns: tuple[str, ...]) -> Any:
    """Return the columns; of which type they are is left to the model, which knows better.

    MLflow's types refuse what comes in practice: whole numbers, or none at all, in a column of
    doubles; a column of text in which all values are missing; dates that are text, as CSV and JSON
    have them; pandas' categories.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name) for name in columns]),
        outputs=Schema([TensorSpec(np.dtype(np.float64), (-1,))]),
    )


def refusal(reason: str) -> Exception:
    """Return what a served model raises for what it cannot take: a server answers with 400."""
    from mlflow.exceptions import MlflowException

    refused: Exception = MlflowException.invalid_parameter_value(reason)
    return refused
