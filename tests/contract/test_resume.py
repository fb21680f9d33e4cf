"""Interrupted and resumed equals uninterrupted, bit for bit, wherever it died."""

import json

import pytest
from support import (
    SMALL,
    checkpoint,
    client,
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

from onward.checkpoint.hashed import verify
from onward.checkpoint.manifest import parse_manifest
from onward.tracking.names import LATEST_CHECKPOINT_TAG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a chain is 17 launches

OPTIONS = (
    *SMALL,
    *("--epochs", "16", "--checkpoint_freq", "3", "--target", "price", "--upload", "sync"),
)
# Where the attempts of a run die, one after the other (see killer.py), and the epoch that the next
# one begins with: on the same disk after the newest that is whole there, elsewhere after the newest
# that is committed. None: it never begins, but dies while it publishes what was left on the disk.
WRITING = [
    # death               same disk, elsewhere
    ("before:write@1", 1, 1),
    ("after:write@1", 2, 1),
    ("before:fsync@2", 2, 2),
    ("after:fsync@3", 3, 3),
    ("before:rename@4", 4, 4),
    ("after:rename@5", 6, 5),
    ("before:last_fsync@6", 7, 6),
    ("after:last_fsync@7", 8, 7),
    ("before:part:1@8", 9, 8),
    ("after:part:1@9", 10, 9),
    ("before:part:3@10", 11, 10),
    ("after:part:3@11", 12, 11),
    ("before:last_part@12", 13, 12),
    ("after:last_part@13", 14, 13),
    ("before:part:2@14", None, 14),
    ("before:manifest@14", 15, 14),
]
COMMITTING = [
    ("before:manifest@1", 2, 1),
    ("after:manifest@2", 3, 3),
    ("before:publish@3", 4, 4),
    ("after:publish@4", 5, 5),
    ("before:tags@5", 6, 6),
    ("after:tags@6", 7, 7),
    ("before:index@7", 8, 8),
    ("after:index@8", 9, 9),
    ("before:delete:1@11", None, 12),  # the manifest of 10; 8 is the best, and 9 is kept
    ("after:delete:1@11", 12, 12),
    ("before:delete:2@12", 13, 13),  # the rest of 11
    ("after:delete:2@14", 15, 15),
    ("before:publish@15", None, 16),
    ("before:index@15", 16, 16),
]
VARIANTS = {
    "writing": (WRITING, ("--dropout", "0.2", "--schedule", "plateau", "--precision", "bf16",
                          "--early_stopping", "8", "--lr", "0.05")),
    "committing": (COMMITTING, ("--dropout", "0.2")),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tracking server that all attempts of this module talk to."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module", params=list(VARIANTS))
def undisturbed(request, tmp_path_factory):
    """A run that was never interrupted, in a store of its own; return what it came to, and the
    deaths and options of one that is."""
    deaths, more = VARIANTS[request.param]
    options = (*OPTIONS, *more)
    return never_interrupted(tmp_path_factory.mktemp("undisturbed"), options), deaths, options


def never_interrupted(folder, options):
    """Train in one go, in a store of its own in `folder`; return what the run came to."""
    uri = f"sqlite:///{folder}/mlflow.db"
    table = write_table(folder / "table.csv")
    done = launch(*options, "--data", str(table), cwd=folder, env=environment(folder, uri))
    assert done.returncode == 0, done.stderr
    return outcome(uri, only_run(uri).info.run_id, folder, folder)


@pytest.mark.smoke
def test_killed_once_and_resumed_elsewhere(tmp_path, server):
    """Invariant 1, through a server: of the chains below the shortest there is."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    options = (*OPTIONS, "--dropout", "0.2")
    expected = never_interrupted(folder, options)
    links = [("after:tags@6", 7)]
    run_id = run_through(links, options, tmp_path, server.address, server.folder, moves=True)
    assert differences(expected, outcome(server.address, run_id, server.folder, tmp_path)) == []


@pytest.mark.parametrize("store", ["local", "server"])
def test_killed_at_every_durable_step_and_resumed_on_one_disk(
    undisturbed, tmp_path, request, store
):
    """Invariants 1, 2, 3, 5, 10: a run goes on from what was whole on the disk when it died,
    wherever that was, and ends with the weights, curves and checkpoints of one that never did."""
    expected, deaths, options = undisturbed
    uri, root = f"sqlite:///{tmp_path}/mlflow.db", tmp_path
    if store == "server":
        server = request.getfixturevalue("server")
        uri, root = server.address, server.folder
    links = [(death, epoch) for death, epoch, _ in deaths]
    run_id = run_through(links, options, tmp_path, uri, root, moves=False)
    assert differences(expected, outcome(uri, run_id, root, tmp_path)) == []
    assert list(tmp_path.glob("machine_1/home/runs/*/attempt_*")) == []


def test_killed_at_every_durable_step_and_resumed_elsewhere(undisturbed, tmp_path, server):
    """Invariants 1, 2, 3, 5: a run goes on from what was committed when it died, in an empty
    directory each time, and ends with the weights, curves and checkpoints of one that never did."""
    expected, deaths, options = undisturbed
    links = [(death, epoch) for death, _, epoch in deaths]
    uri, root = server.address, server.folder
    run_id = run_through(links, options, tmp_path, uri, root, moves=True)
    assert differences(expected, outcome(uri, run_id, root, tmp_path)) == []


def test_killed_within_a_round_and_resumed_elsewhere(tmp_path, server):
    """Invariants 1, 2, 3, 5: several checkpoints are committed, and nothing that follows is done;
    once with others to come, once with all."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    options = (*OPTIONS, "--checkpoint_freq", "1", "--upload", "async")
    expected = never_interrupted(folder, options)
    # How many there are in a round when training is over, the threads decide.
    links = [("round:before:manifest@9", 9), ("round:before:publish@12", ...)]
    run_id = run_through(links, options, tmp_path, server.address, server.folder, moves=True)
    assert differences(expected, outcome(server.address, run_id, server.folder, tmp_path)) == []


def run_through(links, options, tmp_path, uri, root, moves):
    """Let a run die and go on until it ends; return its ID.

    Args:
        links: Where each attempt dies, and the first epoch of the next one; `...`: whichever.
        options: What the first attempt is started with.
        tmp_path: Where the machines are; the experiment has its name.
        uri: The tracking server.
        root: Where its artifacts lie.
        moves: Whether each attempt has a machine of its own, the table only on the first.
    """
    run_id, first_epoch = None, None
    for number, (death, next_epoch) in enumerate([*links, (None, None)], start=1):
        machine = tmp_path / f"machine_{number if moves else 1}"
        machine.mkdir(exist_ok=True)
        env = environment(machine / "home", uri, MLFLOW_EXPERIMENT_NAME=tmp_path.name)
        start = ("--resume_run", run_id)
        if run_id is None:
            start = (*options, "--data", str(write_table(machine / "table.csv")))
        if death is None:
            done = launch(*start, cwd=machine, env=env)
            assert done.returncode == 0, done.stderr
        else:
            done = launch_killed(death, *start, cwd=machine, env=env)
        told = f"attempt {number}, until {death}:\n{done.stdout}{done.stderr}"
        if run_id is not None and first_epoch is not ...:
            begins = f"from epoch {first_epoch} (" in done.stdout
            assert begins if first_epoch else "from epoch" not in done.stdout, told
        assert "Falling back" not in done.stdout, told  # to an older checkpoint
        if moves:
            (machine / "table.csv").unlink(missing_ok=True)
        run_id, first_epoch = run_id or run_of(uri, tmp_path.name), next_epoch
        assert_what_is_shown_is_whole(uri, run_id, root, told)
    return run_id


def run_of(uri, experiment):
    """Return the ID of the one run of the experiment."""
    api = client(uri)
    [run] = api.search_runs([api.get_experiment_by_name(experiment).experiment_id])
    return run.info.run_id


def checkpoints_of(run_id, root):
    """Return the folder of a run's checkpoints."""
    [artifacts] = root.rglob(f"{run_id}/artifacts")
    return artifacts / "checkpoints"


def listed(folder):
    """Return the names of the checkpoints in the index."""
    path = folder / "index.json"
    entries = json.loads(path.read_text())["checkpoints"] if path.exists() else []
    return {f"epoch_{entry['epoch']}" for entry in entries}


def assert_what_is_shown_is_whole(uri, run_id, root, told):
    """Wherever a run died, each checkpoint with a manifest is whole, and the pointer, the index
    and the metrics tell of nothing else."""
    folder = checkpoints_of(run_id, root)
    committed = {}
    for path in folder.glob("*/manifest.json"):
        name = path.parent.name
        committed[name] = parse_manifest(path.read_bytes(), name)
        verify(path.parent, committed[name], name)
    assert listed(folder) <= committed.keys(), told
    api = client(uri)
    steps = [metric.step for metric in api.get_metric_history(run_id, "val_loss")]
    published = max(steps, default=0)
    assert published <= max((m.epoch for m in committed.values()), default=0), told
    pointer = api.get_run(run_id).data.tags.get(LATEST_CHECKPOINT_TAG)
    if pointer is not None:
        name = pointer.split("/")[1]
        assert name in committed, told
        assert committed[name].epoch <= published, told


def outcome(uri, run_id, root, folder):
    """Return what a run has come to; `folder` is for what is downloaded."""
    api = client(uri)
    for key in api.get_run(run_id).data.metrics:
        steps = [metric.step for metric in api.get_metric_history(run_id, key)]
        assert len(steps) == len(set(steps)), f"{key} has a step twice: {steps}"
    checkpoints = checkpoints_of(run_id, root)
    return {
        "status": api.get_run(run_id).info.status,
        "saved": comparable(checkpoint(uri, run_id, folder / "saved")),
        "curves": curves(uri, run_id),
        "index": index(uri, run_id, folder / "index"),
        "in the store": sorted(path.name for path in checkpoints.iterdir()),
    }
