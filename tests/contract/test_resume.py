"""Interrupted and resumed equals uninterrupted, bit for bit, wherever it died."""

import pytest
from support import (
    SMALL,
    checkpoint,
    comparable,
    curves,
    differences,
    environment,
    index,
    launch,
    launch_killed,
    mlflow_server,
    only_run,
    write_table,
)

pytestmark = pytest.mark.slow

EVERYTHING = (*SMALL, "--epochs", "8", "--checkpoint_freq", "3", "--target", "price")
VARIANTS = {
    "cosine": ("--dropout", "0.2"),
    "plateau": ("--dropout", "0.2", "--schedule", "plateau", "--precision", "bf16",
                "--early_stopping", "4", "--lr", "0.05"),
}  # fmt: skip
# Where each attempt of a run dies. A commit uploads three files and the index, and the first
# attempt uploads the data (two files) before; the log goes up with a kept checkpoint.
DEATHS = [
    "before:write:1",  # nothing was ever committed
    "before:upload:5",  # epoch 1: all but the manifest is there
    "after:upload:5",  # the manifest is, its metrics are not: the attempt began without data
    "after:publish:2",  # the metrics are, the pointer is not
    "after:tags:5",  # the pointer is, the index is not
    "before:delete:1",  # committed, not pruned
    "after:delete:1",  # half pruned: the manifest is gone, the data is not
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tracking server that all attempts of this module talk to."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module", params=list(VARIANTS))
def undisturbed(request, tmp_path_factory):
    """A run that was never interrupted, in a store of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    uri = f"sqlite:///{folder}/mlflow.db"
    options = (*EVERYTHING, *VARIANTS[request.param])
    table = write_table(folder / "table.csv")
    done = launch(*options, "--data", str(table), cwd=folder, env=environment(folder, uri))
    assert done.returncode == 0, done.stderr
    run_id = only_run(uri).info.run_id
    return options, uri, run_id, comparable(checkpoint(uri, run_id, folder / "got"))


def test_killed_at_every_durable_step_on_a_new_machine_each_time(undisturbed, tmp_path, server):
    """Invariants 1, 2, 3, 5: a run that dies at each step of a commit, and goes on in an empty
    directory each time, ends with the weights, curves and checkpoints of one that never did."""
    options, uri, undisturbed_id, expected = undisturbed
    name = tmp_path.name
    run_id = None
    for number, death in enumerate([*DEATHS, None], start=1):
        machine = tmp_path / f"machine_{number}"
        machine.mkdir()
        env = environment(machine / "home", server, MLFLOW_EXPERIMENT_NAME=name)
        if run_id is None:
            start = (*options, "--data", str(write_table(machine / "table.csv")))
        else:
            start = ("--resume_run", run_id)
        if death is None:
            done = launch(*start, cwd=machine, env=env)
            assert done.returncode == 0, done.stderr
        else:
            launch_killed(death, *start, cwd=machine, env=env)
        (tmp_path / "machine_1" / "table.csv").unlink(missing_ok=True)
        run_id = run_id or newest_run(server, name)
    saved = comparable(checkpoint(server, run_id, tmp_path / "got"))
    assert differences(expected, saved) == []
    assert curves(server, run_id) == curves(uri, undisturbed_id)
    assert index(server, run_id, tmp_path / "a") == index(uri, undisturbed_id, tmp_path / "b")


def newest_run(uri: str, experiment: str) -> str:
    """Return the ID of the first attempt's run."""
    from mlflow import MlflowClient

    api = MlflowClient(uri)
    experiment_id = api.get_experiment_by_name(experiment).experiment_id
    [run] = api.search_runs([experiment_id])
    return run.info.run_id
