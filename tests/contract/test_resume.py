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

EVERYTHING = (
    *SMALL,
    *("--epochs", "8", "--checkpoint_freq", "3", "--target", "price", "--upload", "sync"),
)
VARIANTS = {
    "cosine": ("--dropout", "0.2"),
    "plateau": ("--dropout", "0.2", "--schedule", "plateau", "--precision", "bf16",
                "--early_stopping", "4", "--lr", "0.05"),
}  # fmt: skip
# Where each attempt of a run dies; see killer.py. A checkpoint has several parts, the metrics file
# and the manifest.
DEATHS = [
    "before:write:1@1",  # nothing was ever committed
    "before:upload:4@1",  # some parts are there
    "after:publish:1@1",  # the metrics are there, the pointer is not
    "after:tags:1@2",  # the pointer is, the index is not
    "before:delete:1@4",  # committed, not pruned
    "after:delete:1@6",  # half pruned: the manifest is gone, the data is not
]
# The same for one run on one disk, with the epoch that the resume begins with there.
ON_ONE_DISK = [
    ("before:write:1@3", 3),
    ("before:fsync:1@3", 3),
    ("after:fsync:3@3", 3),
    ("before:rename:1@3", 3),
    ("after:rename:1@3", 4),
    ("after:write:1@3", 4),
    ("before:upload:1@3", 4),
    ("after:upload:3@3", 4),
    ("before:publish:1@3", 4),
    ("before:tags:1@3", 4),
    ("before:delete:1@3", 5),  # epoch 3 goes when 4 is there
    ("after:delete:2@3", 5),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tracking server that all attempts of this module talk to."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running.address


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


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of five epochs that was never interrupted; return (options, store, run ID)."""
    folder = tmp_path_factory.mktemp("short")
    uri = f"sqlite:///{folder}/mlflow.db"
    table = str(write_table(folder / "table.csv"))
    options = (*SMALL, "--epochs", "5", "--checkpoint_freq", "2", "--target", "price",
               "--dropout", "0.2", "--upload", "sync", "--data", table)  # fmt: skip
    done = launch(*options, cwd=folder, env=environment(folder, uri))
    assert done.returncode == 0, done.stderr
    return options, uri, only_run(uri).info.run_id


@pytest.mark.parametrize(("death", "first_epoch"), ON_ONE_DISK)
def test_killed_and_resumed_on_one_disk(short, tmp_path, death, first_epoch):
    """Invariants 1, 2, 3, 10: whatever was whole on the disk when the process died is published
    by the resume, which goes on from there and ends as if nothing had happened."""
    options, short_uri, short_id = short
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    env = environment(tmp_path / "home", uri)
    launch_killed(death, *options, cwd=tmp_path, env=env)
    run_id = only_run(uri).info.run_id
    done = launch("--resume_run", run_id, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert f"Resuming training from epoch {first_epoch} " in done.stdout
    saved = [
        comparable(checkpoint(*pair, tmp_path / pair[1]))
        for pair in ((short_uri, short_id), (uri, run_id))
    ]
    assert differences(*saved) == []
    assert curves(uri, run_id) == curves(short_uri, short_id)
    assert index(uri, run_id, tmp_path / "a") == index(short_uri, short_id, tmp_path / "b")
    folders = next((tmp_path / "mlruns").rglob("checkpoints")).glob("epoch_*")
    assert {path.name for path in folders} == {"epoch_2", "epoch_4", "epoch_5"} | {
        f"epoch_{only_run(uri).data.tags['train.best_epoch']}"
    }


def newest_run(uri: str, experiment: str) -> str:
    """Return the ID of the first attempt's run."""
    from mlflow import MlflowClient

    api = MlflowClient(uri)
    experiment_id = api.get_experiment_by_name(experiment).experiment_id
    [run] = api.search_runs([experiment_id])
    return run.info.run_id
