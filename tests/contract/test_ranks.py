"""Several ranks: whatever dies, the job goes on by itself and ends as if nothing had happened."""

import contextlib
import os
import random
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from support import (
    BIN,
    checkpoint,
    children,
    client,
    curves,
    differences,
    ended,
    environment,
    group_of,
    only_run,
    run_command,
    start_logged,
    wait_for,
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that import torch

RANKED = Path(__file__).parent / "ranked.py"
OWN = {"WORKERS", "FSDP", "EPOCHS", "STEPS", "PLAIN"}  # variables that are the script's
NUM_STEPS = 11  # of an epoch, of which there are four
TOLERANCE = 1e-4  # between numbers of ranks, as docs/distributed.md states it


class Job:
    """A job of several ranks on a machine of its own.

    Args:
        folder: Its files.
        uri: Of the tracking server.
    """

    def __init__(self, folder, uri):
        self.folder, self.uri = folder, uri
        folder.mkdir()

    def start(self, num_ranks, *plan, program=None, resume_run=None, **variables):
        """Start it; what it prints is in its `output`."""
        options = {"UPLOAD": "sync", "LOG_MODEL": "false", "GRACE_SECONDS": "20"} | variables
        if resume_run:
            options["RESUME_RUN"] = resume_run
        given = {(k if k in OWN else f"ONWARD_{k}"): v for k, v in options.items()}
        env = environment(self.folder / "home", self.uri, OMP_NUM_THREADS="1", **given)
        start = program or [BIN / "onward", "launch", "--nproc", str(num_ranks)]
        return start_logged(
            [*start, RANKED, *plan], self.folder / "output", cwd=self.folder, env=env,
            start_new_session=True,
        )  # fmt: skip

    def run(self, num_ranks, *plan, code=0, **named):
        """Run it to its end, which has that exit code; return what it printed."""
        with group_of(self.start(num_ranks, *plan, **named)) as process:
            process.wait(240)
            told = process.output.read_text()
            assert process.returncode == code, told
            return told


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Return how a run of so many ranks ends that nobody disturbs; each is made once."""
    made = {}

    def get(num_ranks, **variables):
        key = (num_ranks, *variables)
        if key not in made:
            folder = tmp_path_factory.mktemp("calm") / str(num_ranks)
            uri = f"sqlite:///{folder}.db"
            Job(folder, uri).run(num_ranks, **variables)
            made[key] = ended(uri, only_run(uri).info.run_id, folder)
        return made[key]

    return get


@pytest.fixture
def job(tmp_path, tracking_uri):
    return Job(tmp_path / "job", tracking_uri)


CHAOS = int(os.environ.get("RANKS", "0"))  # `make chaos RANKS=2 KILLS=100`


@pytest.mark.skipif(not CHAOS, reason="for `make chaos RANKS=2`")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("variables", [{}, {"FSDP": "1"}], ids=["ddp", "fsdp"])
def test_chaos(calm, job, variables, tracking_uri):
    """A rank is killed in each life, after a few steps, until the run has all its epochs."""
    draw = random.Random(int(os.environ.get("SEED", "0")))
    kills = int(os.environ["KILLS"])
    plan = [
        f"{draw.randrange(CHAOS)}:{draw.randint(3, 9)}:KILL:{life}" for life in range(1, kills + 1)
    ]
    variables = variables | {"EPOCHS": str(kills * 6 // NUM_STEPS + 2)}
    with group_of(job.start(CHAOS, *plan, **variables)) as process:
        assert process.wait() == 0, process.output.read_text()
    told = process.output.read_text()
    num_lives = told.count("starting all anew") + 1
    expect_as(calm, CHAOS, tracking_uri, job.folder, attempts=num_lives, **variables)
    print(f"{num_lives - 1} of {kills} kills, {CHAOS} ranks: the same bits")


def expect_as(calm, num_ranks, uri, folder, *, attempts, **variables):
    """The one run of the store ended as that of an undisturbed job, after so many attempts."""
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert len(children(uri, run.info.run_id)) == attempts - 1
    assert differences(ended(uri, run.info.run_id, folder), calm(num_ranks, **variables)) == []


def expect_near(calm, num_ranks, uri, folder, **variables):
    """The run ended within the tolerance of an undisturbed job's: its weights, and its losses."""
    found = ended(uri, only_run(uri).info.run_id, folder)
    expected = calm(num_ranks, **variables)
    weights, losses = [], []
    for end in (found, expected):
        tensors = end["state"]["model_state_dict"].values()
        weights.append(torch.cat([tensor.flatten() for tensor in tensors]))
        losses.append(torch.tensor([end["curves"][key] for key in ("train_loss", "val_loss")]))
    assert (weights[0] - weights[1]).abs().max() <= TOLERANCE * weights[1].abs().max()
    torch.testing.assert_close(*losses, rtol=TOLERANCE, atol=0)


def steps(*ranges):
    """Draw a step of each range."""
    return [random.randint(*limits) for limits in ranges]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_killed_ranks_are_started_anew_and_end_the_same(calm, job, num_ranks, tracking_uri):
    """Rank 0 and then the last one: the same run, to the bit, also with dropout and batch norm."""
    first, second = steps((6, 20), (4, 12))
    plan = (f"0:{first}:KILL:1", f"{num_ranks - 1}:{second}:KILL:2")
    told = job.run(num_ranks, *plan)
    assert told.count("starting all anew, from the newest checkpoint") == 2, told
    expect_as(calm, num_ranks, tracking_uri, job.folder, attempts=3)


def test_a_loop_by_steps_ends_the_same_too(calm, job, tracking_uri):
    """Over a loader that is repeated: rank 1 is killed, and the loader's place is that of all."""
    [step] = steps((4, 25))
    job.run(2, f"1:{step}:KILL:1", STEPS="30")
    expect_as(calm, 2, tracking_uri, job.folder, attempts=2, STEPS="30")


def test_sharded_weights_are_saved_in_pieces_and_end_the_same(calm, job, tracking_uri):
    """FSDP2: a rank dies twice; each rank writes what it holds, and its own batch norm."""
    first, second = steps((6, 20), (4, 12))
    told = job.run(2, f"1:{first}:KILL:1", f"0:{second}:KILL:2", FSDP="1")
    logs = client(tracking_uri).list_artifacts(only_run(tracking_uri).info.run_id, "logs")
    assert {"logs/attempt_3.log", "logs/attempt_3_rank_1.log"} <= {log.path for log in logs}
    assert told.count("starting all anew, from the newest checkpoint") == 2, told
    expect_as(calm, 2, tracking_uri, job.folder, attempts=3, FSDP="1")


def test_sharded_weights_go_on_in_any_layout(job, tracking_uri):
    """FSDP2 on 2 ranks, on 3, one process, DDP on 2: what is restored is what was saved."""
    job.run(2, "0:5:TERM:1", code=75, FSDP="1")
    run_id = only_run(tracking_uri).info.run_id
    job.run(3, "0:6:TERM:2", code=75, resume_run=run_id, FSDP="1")
    job.run(1, "0:7:TERM:3", code=75, resume_run=run_id, program=[sys.executable])
    job.run(2, "1:7:TERM:4", code=75, resume_run=run_id)
    job.run(2, resume_run=run_id, FSDP="1")
    assert client(tracking_uri).get_run(run_id).info.status == "FINISHED"
    saved = checkpoint(tracking_uri, run_id, job.folder / "end")
    assert saved["step"] == 4 * NUM_STEPS
    exported = job.folder / "whole.pth"
    env = environment(job.folder / "home", tracking_uri)
    for command in (("verify", run_id), ("export", run_id, "--to", exported)):
        done = run_command([BIN / "onward", *command], cwd=job.folder, env=env)
        assert done.returncode == 0, done.stderr
    whole = torch.load(exported, weights_only=True)
    assert whole["model_state_dict"]["0.weight"].shape == (33, 6)


@pytest.mark.parametrize("who", ["0:7:TERM@agent:1", "1:7:TERM:1", "0:7:USR1@agent:1"])
def test_a_signal_stops_all_ranks_at_one_step(calm, job, who, tracking_uri):
    """To the launcher or to one rank: all save and stop, 75 comes out, and nothing starts anew."""
    told = job.run(2, who, code=75, WORKERS="1")
    assert "starting all anew" not in told
    run = only_run(tracking_uri)
    assert run.info.status == "KILLED"
    # Sent on by the launcher, the signal comes some steps later.
    saved = checkpoint(tracking_uri, run.info.run_id, job.folder / "at")
    assert saved["step"] >= 7
    assert len(saved["ranks"]) == 2
    job.run(2, resume_run=run.info.run_id)
    assert client(tracking_uri).get_run(run.info.run_id).info.status == "FINISHED"
    resumed = ended(tracking_uri, run.info.run_id, job.folder / "end")
    assert resumed["state"]["step"] == calm(2)["state"]["step"]


def test_stopped_and_resumed_it_ends_the_same(calm, job, tracking_uri):
    """All ranks get back their own random numbers, inside an epoch as well."""
    [step] = steps((3, 30))
    job.run(2, f"1:{step}:TERM:1", code=75)
    job.run(2, resume_run=only_run(tracking_uri).info.run_id)
    expect_as(calm, 2, tracking_uri, job.folder, attempts=2)


def test_torchrun_itself_starts_anew_too(calm, job, tracking_uri):
    """Its store outlives its workers: what these said is past, and the run is the same."""
    torchrun = [BIN / "torchrun", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else torch's own group meets the old store
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        job.run(2, "1:9:KILL:1", program=torchrun)
    expect_as(calm, 2, tracking_uri, job.folder, attempts=2)


def test_a_rank_that_freezes_is_given_up(calm, job, tracking_uri):
    """The others wait as long as they may; then the job goes on without that process."""
    told = job.run(2, "1:9:STOP:1", RANK_MINUTES="0.1")
    assert "starting all anew" in told
    expect_as(calm, 2, tracking_uri, job.folder, attempts=2)


def test_ranks_end_with_their_agent(calm, job, tracking_uri):
    """Nobody would end them else: they save and stop, and the run can be gone on with."""
    job.run(2, "0:9:KILL@agent:1", code=-signal.SIGKILL)
    run = only_run(tracking_uri)
    wait_for(lambda: client(tracking_uri).get_run(run.info.run_id).info.status == "KILLED")
    job.run(2, resume_run=run.info.run_id)
    expect_as(calm, 2, tracking_uri, job.folder, attempts=2)


def test_every_process_may_get_each_signal_twice(job, tracking_uri):
    """As where a service manager and the agent both send it: no rank dies of the second."""
    with group_of(job.start(2)) as process:
        wait_for(lambda: "epoch 1" in process.output.read_text())
        for pid in [process.pid, *descendants(process.pid)] * 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        assert process.wait(120) == 75, process.output.read_text()
    assert only_run(tracking_uri).info.status == "KILLED"


def descendants(pid):
    import psutil

    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def test_a_fault_on_one_rank_is_told_and_ends_all(job, tracking_uri):
    """The run is FAILED, the line names the rank, and nothing is tried for ever."""
    program = [BIN / "onward", "launch", "--nproc", "2", "--max_restarts", "0"]
    told = job.run(2, "1:5:ERROR:1", program=program, code=1)
    assert "rank 1 has ended: ValueError: a fault of its own" in told
    assert only_run(tracking_uri).info.status == "FAILED"


def test_what_cannot_be_opened_is_told_once(job):
    """One line, the code of the error, no second life."""
    told = job.run(2, resume_run="0" * 32, code=6)
    assert "starting all anew" not in told
    assert told.count("RunNotUsable: run '0000") == 1, told


def test_another_number_of_ranks_goes_on_and_is_told(calm, job, tracking_uri):
    """2, then 3 with FSDP2, then 1: it is reported, and strict refuses it; nothing is lost.

    It ends near a run on 2 ranks: only the order of sums is another.
    """
    job.run(2, "0:5:TERM:1", code=75, PLAIN="1")
    run_id = only_run(tracking_uri).info.run_id
    refused = job.run(3, resume_run=run_id, STRICT="true", code=6, PLAIN="1")
    assert "ranks was 2 and is 3" in refused
    told = job.run(3, "0:9:TERM:2", resume_run=run_id, code=75, PLAIN="1", FSDP="1")
    assert "2 -> 3" in told
    job.run(1, resume_run=run_id, program=[sys.executable], PLAIN="1")
    assert client(tracking_uri).get_run(run_id).info.status == "FINISHED"
    expect_near(calm, 2, tracking_uri, job.folder / "end", PLAIN="1")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_built_in_loop_stops_and_goes_on(strategy, tmp_path, table, tracking_uri):
    """On two ranks: stopped by its epochs and resumed, it ends as one that went through.

    Of a batch one rank accumulates six parts, the other five.
    """
    words = [
        *("--data", str(table), "--target", "price", "--batch_size", "11", "--hidden_size", "17"),
        *("--num_layers", "1", "--dropout", "0.2", "--schedule_epochs", "2", "--strategy"),
        *(strategy, "--accumulation_steps", "6", "--threads", "1", "--log_model", "false"),
    ]
    env = environment(tmp_path / "home", tracking_uri)
    ends = []
    for parts in ([[*words, "--epochs", "2"]], [[*words, "--epochs", "1"], ["--epochs", "2"]]):
        run_id = None
        for part in parts:
            more = ["--resume_run", run_id] if run_id else []
            launched = [BIN / "train", "launch", "--nproc", "2", "--", "run", *part, *more]
            done = run_command(launched, cwd=tmp_path, env=env)
            assert done.returncode == 0, done.stdout + done.stderr
            run_id = re.search(r"Run ([0-9a-f]{32}), attempt", done.stdout)[1]
        exported = tmp_path / f"{run_id}.pth"
        command = [BIN / "onward", "export", run_id, "--to", exported]
        done = run_command(command, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        saved = torch.load(exported, weights_only=True)
        state = [saved[f"{name}_state_dict"] for name in ("model", "optimizer")]
        ends.append((state, curves(tracking_uri, run_id)))
    assert differences(*ends) == []


def test_parts_give_the_same_bits_on_any_number_of_ranks(tmp_path, table, tracking_uri):
    """1, 2 and 4 ranks, and a run that moves between them while it is killed: one digest."""
    words = [
        *("--data", str(table), "--target", "price", "--batch_size", "64", "--hidden_size", "16"),
        *("--num_layers", "1", "--dropout", "0.2", "--epochs", "3", "--log_model", "false"),
        *("--threads", "1", "--strategy", "parts", "--parts", "4", "--upload", "sync"),
    ]
    env = environment(tmp_path / "home", tracking_uri)

    def train(num_ranks, *more):
        launched = [BIN / "train", "launch", "--nproc", num_ranks, "--", "run", *more]
        return run_command(launched, cwd=tmp_path, env=env)

    def newest_run():
        found = client(tracking_uri).search_runs(
            ["0"], "tags.`train.fingerprint` != ''", order_by=["attributes.start_time DESC"]
        )
        return found[0].info.run_id

    def end_of(run_id):
        saved = checkpoint(tracking_uri, run_id, tmp_path / run_id)
        state = {
            k: v for k, v in saved.items() if k in ("model_state_dict", "optimizer_state_dict")
        }
        return state, curves(tracking_uri, run_id)

    ends = []
    for num_ranks in (1, 2, 4):
        done = train(num_ranks, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        ends.append(end_of(newest_run()))
    assert train(2, *words, "--epochs", "1", "--schedule_epochs", "3").returncode == 0
    moved = newest_run()
    for num_ranks, epochs in ((4, "2"), (1, "3")):
        done = train(num_ranks, "--resume_run", moved, "--epochs", epochs)
        assert done.returncode == 0, done.stdout + done.stderr
    ends.append(end_of(moved))
    for other in ends[1:]:
        assert differences(ends[0], other) == []
