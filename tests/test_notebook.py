"""The notebook among the examples: a cell is interrupted, the next one goes on."""

import json
import subprocess
import sys

import pytest
from support import ROOT, client, environment

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
# What Jupyter does, as far as it matters: all cells in one `__main__` that is no file, SIGINT to
# the cell that is interrupted, and a word where a cell is left.
PLAYER = """
import hashlib, json, os, signal, sys
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

torch.set_num_threads(1)
steps = []

def interrupt(*_):
    steps.append(None)
    if len(steps) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGINT)

register_optimizer_step_post_hook(interrupt)
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        try:
            exec("".join(cell["source"]), globals())
        except SystemExit as left:
            print("left", left.code, cell["id"])
weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
print("weights", hashlib.sha256(weights).hexdigest())
"""


def play(folder, uri, die_after):
    """Run the cells, the first that trains interrupted after so many steps; return the output."""
    folder.mkdir()
    variables = {"ONWARD_LOG_MODEL": "false", "MLFLOW_EXPERIMENT_NAME": folder.name}
    done = subprocess.run(
        [sys.executable, "-c", PLAYER, NOTEBOOK, str(die_after)],
        cwd=folder, env=environment(folder / "home", uri, **variables),
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_no_output():
    """It is stored as it is before anybody runs it."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_an_interrupted_cell_is_gone_on_from(tracking, tmp_path):
    """The weights in the end are those of a notebook that nobody has interrupted."""
    interrupted, calm = (play(tmp_path / f"after{n}", tracking.uri, n) for n in (100, -1))
    assert "left 75 first" in interrupted
    assert "Resuming training from epoch 5, step 5 of it" in interrupted
    assert "left" not in calm
    digests = [text.rpartition("weights ")[2] for text in (interrupted, calm)]
    assert digests[0] == digests[1]
    for name, number in (("after100", 1), ("after-1", 2)):
        experiment = client(tracking.uri).get_experiment_by_name(name).experiment_id
        runs = client(tracking.uri).search_runs([experiment])
        runs = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert [run.info.status for run in runs] == ["FINISHED"] * number
