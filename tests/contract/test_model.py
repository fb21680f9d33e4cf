"""A finished run's model in other hands: MLflow's own loading, serving and commands."""

import csv
import datetime
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import requests
from support import (
    BIN,
    SMALL,
    client,
    environment,
    group_of,
    launch,
    launch_killed,
    mlflow_server,
    run_command,
    start_logged,
    wait_for,
)

pytestmark = pytest.mark.slow

OPTIONS = (*SMALL, "--log_model", "true", "--target", "price", "--epochs", "3")

# What somebody does who has the model's address, nothing of this program, and of the packages only
# those that the model asks for.
STRANGER = """
import sys
sys.modules.update(dict.fromkeys(["rich", "babel", "pynvml"]))
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
numbers = model.predict(pandas.read_csv(sys.argv[2]))
import onward, train, json
files = [train.__file__, onward.__file__]
print(json.dumps({"numbers": numbers.tolist(), "files": files, "path": sys.path}))
"""


def write_rows(path, num_rows, seed, colors):
    """Write rows with numbers, categories, dates, times, booleans; of each some are missing."""
    draw = random.Random(seed)

    def shown(value):
        return "" if draw.random() < 0.1 else value

    lines = ["size,weight,color,built,seen,fresh,rooms,price"]
    for _ in range(num_rows):
        size, weight, rooms = draw.gauss(0, 1), draw.gauss(5, 2), draw.randrange(5)
        color, built = draw.choice(colors), datetime.date(2001, 1, 1)
        built += datetime.timedelta(days=draw.randrange(3000))
        seen = datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=draw.randrange(3000))
        fresh = "true" if draw.random() < 0.5 else "false"
        price = 30 + 3 * size + weight + len(color) + rooms
        values = [f"{size:.4f}", *map(shown, (f"{weight:.4f}", color, built, seen, fresh, rooms))]
        lines.append(",".join(map(str, [*values, f"{price:.3f}"])))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on a server, rows it has not seen, and its predictions by `train predict`."""
    folder = tmp_path_factory.mktemp("model")
    table = write_rows(folder / "table.csv", 400, 0, ["red", "green", "blue", "NA"])
    rows = write_rows(folder / "rows.csv", 30, 1, ["red", "green", "NA", "mauve", "12"])
    with mlflow_server(folder / "server") as server:
        env = environment(folder / "home", server.address)
        done = launch(*OPTIONS, "--data", str(table), cwd=folder, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        run_id = client(server.address).search_runs(["0"])[0].info.run_id
        words = [sys.executable, "-m", "train", "predict", run_id, str(rows)]
        told = run_command(words, cwd=folder, env=env)
        assert told.returncode == 0, told.stderr
        found = csv.DictReader(io.StringIO(told.stdout))
        numbers = np.array([float(row["predicted_price"]) for row in found])
        assert len(np.unique(numbers)) == 30, "else all would agree with anything"
        del env["PYTHONPATH"]
        yield SimpleNamespace(
            folder=folder, table=table, rows=rows, address=server.address, env=env, run_id=run_id,
            model=f"runs:/{run_id}/model", numbers=numbers,
        )  # fmt: skip


def background(command, file, **popen):
    """Run a command for the length of a block, with all that it starts."""
    return group_of(start_logged(command, file, start_new_session=True, **popen))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def test_a_stranger_loads_it(finished, tmp_path):
    """With MLflow alone and unpickling forbidden: the code that runs is the model's own."""
    (tmp_path / "empty").mkdir()
    env = finished.env | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    words = [sys.executable, "-I", "-c", STRANGER, finished.model, str(finished.rows)]
    done = subprocess.run(words, cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(told["numbers"], finished.numbers, rtol=1e-5)
    [archive] = {Path(file).parents[1] for file in told["files"]}
    assert (archive.parent.name, archive.suffix) == ("code", ".zip"), told
    assert str(archive) in told["path"]
    stored = [path for path in archive.parents[1].rglob("*") if path.is_file()]
    assert not [path for path in stored if path.suffix == ".pkl"]
    assert len(stored) < 15, stored  # each is a request to a server


def test_mlflow_serves_it(finished, tmp_path):
    """`mlflow models serve` answers rows as JSON, in both forms, like anybody's model; what it
    cannot take is an answer too."""
    port = free_port()
    words = [BIN / "mlflow", "models", "serve", "-m", finished.model, "--env-manager", "local"]
    with background(
        [*words, "-p", str(port)], tmp_path / "log", cwd=tmp_path, env=finished.env
    ) as s:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: s.poll() is not None or answers(f"{address}/ping"))
        assert s.poll() is None, s.output.read_text()

        def ask(rows, orient):
            body = f'{{"dataframe_{orient}": {rows.to_json(orient=orient, date_format="iso")}}}'
            headers = {"Content-Type": "application/json"}
            return requests.post(f"{address}/invocations", body, headers=headers, timeout=60)

        rows = pd.read_csv(finished.rows)
        as_dates = pd.read_csv(finished.rows, parse_dates=["built", "seen"])
        words = pd.read_csv(finished.rows, dtype=str, keep_default_na=False)  # NA, as it stands
        asked = [(rows, "split"), (rows, "records"), (as_dates, "split")]
        asked += [(rows.assign(color=words["color"]), "records")]
        for given, orient in asked:
            answer = ask(given, orient)
            assert answer.status_code == 200, answer.text
            numbers = answer.json()["predictions"]
            np.testing.assert_allclose(numbers, finished.numbers, rtol=1e-5)
        refused = ask(rows.assign(built="one day"), "split")
        told = refused.json()
        assert refused.status_code == 400, told
        assert (told["error_code"], "stack_trace" in told) == ("INVALID_PARAMETER_VALUE", False)
        assert "column 'built' is not what it was when fitted: not a date" in told["message"]


def test_mlflow_predicts_a_csv(finished, tmp_path):
    """`mlflow models predict` takes the file itself."""
    words = [BIN / "mlflow", "models", "predict", "-m", finished.model, "--env-manager", "local"]
    files = ["-i", str(finished.rows), "-t", "csv", "-o", str(tmp_path / "out.json")]
    done = subprocess.run(
        [*words, *files], cwd=tmp_path, env=finished.env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out.json").read_text())["predictions"]
    np.testing.assert_allclose(numbers, finished.numbers, rtol=1e-5)


@pytest.mark.parametrize(
    ("where", "next_words"),
    [("before:model@3", ["sync"]), ("after:model@3", ["run", "--resume_run", "{run_id}"])],
)
def test_a_death_while_the_model_is_logged(finished, tmp_path, where, next_words):
    """What is left to do waits on this disk, and the next command does it, `train sync` or a
    resume: the run is FINISHED, with one model."""
    env = environment(tmp_path / "home", finished.address)
    options = (*OPTIONS, "--data", str(finished.table), "--seed", "7")
    launch_killed(where, *options, cwd=tmp_path, env=env)
    api = client(finished.address)
    run_id = api.search_runs(["0"])[0].info.run_id
    assert [str(m.status) for m in models_of(api, run_id)] == ["PENDING"]
    assert list((tmp_path / "home").glob("runs/*/attempt_1/journal.json"))
    words = [word.format(run_id=run_id) for word in next_words]
    done = run_command([sys.executable, "-m", "train", *words], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    [model] = models_of(api, run_id)
    assert (str(model.status), len(model.metrics)) == ("READY", 5)
    assert len(api.list_artifacts(run_id, "figures")) == 6
    assert api.get_run(run_id).info.status == "FINISHED"
    assert not list((tmp_path / "home").glob("runs/*/attempt_*/*"))


def models_of(api, run_id):
    return api.search_logged_models(["0"], filter_string=f"source_run_id = '{run_id}'")


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_the_pages_of_a_database(tracking_uri, record, tmp_path, send):
    """`train ui` serves MLflow's pages, tells where, and leaves nothing behind when it is
    stopped, by a signal to it alone or, as a terminal does, to all."""
    jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # processes that nothing here needs
    env = environment(tmp_path / "home", tracking_uri, PYTHONUNBUFFERED="1", **jobs)
    words = [sys.executable, "-m", "train", "ui", record.run_id, "--port", str(free_port())]
    with background(words, tmp_path / "log", cwd=tmp_path, env=env) as process:
        wait_for(lambda: process.poll() is not None or "Ctrl-C" in process.output.read_text())
        assert process.poll() is None, process.output.read_text()
        page = rf"(http://\S+)/#/experiments/0/runs/{record.run_id}\?"
        address = re.search(page, process.output.read_text())[1]
        assert "<title>MLflow</title>" in urllib.request.urlopen(address).read().decode()
        send(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, process.output.read_text()
        wait_for(lambda: not group_lives(process.pid))
        assert not answers(f"{address}/health")


def group_lives(number):
    """Tell whether any process of the group is left, ended ones that nobody has asked for aside."""
    states = [
        stat.read_text().rpartition(")")[2].split()
        for stat in Path("/proc").glob("[0-9]*/stat")
        if stat.exists()
    ]
    return any(int(group) == number and state != "Z" for state, _, group, *_ in states)
