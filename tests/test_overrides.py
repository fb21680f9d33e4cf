"""No setting of the user's environment changes what our calls to MLflow guarantee."""

import contextlib
import os
import subprocess
import sys

import pytest
from support import SMALL, client, environment, launch, mlflow_server, only_run, write_table

from onward.system.environment import prepare_process
from onward.system.overrides import BOUNDED, FORCED

# Whom to ask, as whom, and where: that is for the user to say, and not about how we log.
CHOICES = (
    "URI", "USERNAME", "PASSWORD", "TOKEN", "AUTH", "CERT", "TLS", "RUN_ID", "EXPERIMENT", "DIR",
    "WORKSPACE", "PATH", "TESTING", "ENDPOINT", "SERVER", "GATEWAY", "FILE_STORE", "CONTEXT",
    "WEBHOOK", "CRYPTO", "SECRET", "SIGV4",
)  # fmt: skip


def odd_settings():
    """Return MLflow's variables that are not such a choice, each with a value that it refuses,
    or that changes most."""
    from mlflow import environment_variables as module

    odd = {}
    for variable in vars(module).values():
        if isinstance(variable, module._EnvironmentVariable) and not any(
            word in variable.name for word in CHOICES
        ):
            if isinstance(variable, module._BooleanEnvironmentVariable):
                odd[variable.name] = str(not variable.default).lower()
            else:
                odd[variable.name] = "-7" if variable.type in (int, float) else "odd"
    return odd


def outside(environment_variables):
    """Return an environment in which MLflow does not know that it is being tested."""
    return {
        name: value
        for name, value in environment_variables.items()
        if name not in ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")
    }


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, "no such value"])
@pytest.mark.parametrize("store", ["database", "server"])
def test_a_run_is_whole_under_every_odd_setting(tmp_path, store, value):
    """Started, trained and logged: each metric of both epochs is in the store."""
    settings = {name: value or odd for name, odd in odd_settings().items()}
    table = write_table(tmp_path / "table.csv")
    words = (*SMALL, "--data", str(table), "--target", "price", "--epochs", "2")
    with contextlib.ExitStack() as stack:
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        if store == "server":
            uri = stack.enter_context(mlflow_server(tmp_path / "server")).address
        done = launch(*words, cwd=tmp_path, env=environment(tmp_path / "home", uri, **settings))
        assert done.returncode == 0, done.stdout + done.stderr
        run = only_run(uri)
        assert run.info.status == "FINISHED"
        for key in ("train_loss", "val_loss", "val_pearson"):
            history = client(uri).get_metric_history(run.info.run_id, key)
            assert [point.step for point in history] == [1, 2]


ASKED = """
import threading
from onward.system.environment import prepare_process
prepare_process()
from onward.tracking.client import Tracking
tracking = Tracking()
tracking.create_run("0", "a run", {})
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client(), [t.name for t in threading.enumerate()])
"""


def test_nothing_is_reported_to_mlflows_makers(tmp_path):
    """Neither a client for it nor a thread of its own, whatever the environment asks for."""
    wanted = {"MLFLOW_DISABLE_TELEMETRY": "false", "DO_NOT_TRACK": "false"}
    env = environment(tmp_path / "home", f"sqlite:///{tmp_path}/mlflow.db", **wanted)
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        cwd=tmp_path,
        env=outside(env),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "None ['MainThread']\n", done.stderr


def test_what_does_not_hold_is_overridden_and_told_to_who_debugs(caplog):
    """One debug line each, and the user's sound values stay."""
    os.environ |= {"MLFLOW_ENABLE_ASYNC_LOGGING": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "99"}
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7", "MLFLOW_TRACKING_TOKEN": "t"}
    with caplog.at_level("DEBUG", "onward"):
        prepare_process()
    assert os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] == "false"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "t"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES=99" in caplog.text
    assert "MLFLOW_TRACKING_TOKEN" not in caplog.text


@pytest.mark.parametrize("value", ["", "-1", "1e9", "abc", "1000000", "0x10"])
def test_a_number_out_of_bounds_is_not_used(value):
    """Whatever it is that MLflow would not read, or would wait for too long by."""
    os.environ |= dict.fromkeys(BOUNDED, value)
    prepare_process()
    for name, (_low, _high, default) in BOUNDED.items():
        assert os.environ.get(name) == default


def test_the_overridden_variables_are_mlflows_own():
    """A name that MLflow does not know would override nothing."""
    from mlflow import environment_variables as module

    known = {v.name for v in vars(module).values() if isinstance(v, module._EnvironmentVariable)}
    own = {name for name in (*FORCED, *BOUNDED) if "MLFLOW_" in name}
    assert own - known <= {"MLFLOW_LOGGING_LEVEL"}
