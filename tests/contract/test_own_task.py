"""A task of somebody's own, from one file: killed, resumed, served, as the table is."""

import subprocess
import sys

import pytest
from support import (
    ROOT,
    checkpoint,
    curves,
    differences,
    environment,
    launch,
    launch_killed,
    mlflow_server,
)

pytestmark = pytest.mark.slow

OPTIONS = (
    *("--task", str(ROOT / "examples" / "digits.py"), "--width", "4", "--epochs", "4"),
    *("--batch_size", "128", "--threads", "1", "--checkpoint_steps", "3", "--upload", "sync"),
)
# What somebody does who has the model's address: the program's own folders are out of reach.
STRANGER = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
import mlflow.pyfunc, sklearn.datasets
images, labels = sklearn.datasets.load_digits(return_X_y=True)
model = mlflow.pyfunc.load_model(sys.argv[1])
validates = slice(None, None, 5)
found = model.predict(images[validates] / 16)
print((found == labels[validates]).mean())
"""


def test_it_is_killed_inside_an_epoch_resumed_and_served(tmp_path):
    """It ends with the bits of one that was not killed, and its model scores as it did."""
    with mlflow_server(tmp_path / "server") as server:
        envs = {}
        for name in ("killed", "undisturbed"):
            envs[name] = environment(tmp_path / name, server.address, MLFLOW_EXPERIMENT_NAME=name)
        launch_killed("after:tags:2@2", *OPTIONS, cwd=tmp_path, env=envs["killed"])
        ids, found = {}, {}
        for name, env in envs.items():
            more = ("--resume_run", "auto") if name == "killed" else ()
            done = launch(*OPTIONS, *more, cwd=tmp_path, env=env)
            assert done.returncode == 0, done.stdout + done.stderr
            if name == "killed":
                assert "Resuming training from epoch 3, step" in done.stdout, done.stdout
            [line] = [text for text in done.stdout.splitlines() if ", attempt " in text]
            ids[name] = line.split()[1].removesuffix(",")
            found[name] = checkpoint(server.address, ids[name], tmp_path / f"{name}.files")
        exact = [
            {key: value for key, value in one.items() if key.endswith("state_dict")}
            for one in found.values()
        ]
        assert differences(*exact) == []
        assert curves(server.address, ids["killed"]) == curves(server.address, ids["undisturbed"])
        best = dict(curves(server.address, ids["killed"])["best_val_accuracy"])[4]
        env = envs["killed"] | {"PYTHONPATH": ""}
        told = subprocess.run(
            [sys.executable, "-c", STRANGER, f"runs:/{ids['killed']}/model"],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        assert float(told.stdout.split()[-1]) == pytest.approx(best, abs=0.01)
