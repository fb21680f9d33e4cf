"""Makes `runs.tar.xz`: runs of the program as it is now, which every later version must go on from.

    python tests/golden/make.py

It is made once for a form of what is stored, and never again: what it holds was written by the
code of its day. `tests/contract/test_stored_runs.py` says what must hold of it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = Path("/tmp/golden")  # recorded by MLflow as part of every artifact's address
HOST = "golden-host"
OPTIONS = (
    "--data", "table.csv", "--target", "price", "--epochs", "4", "--checkpoint_freq", "2",
    "--batch_size", "32", "--hidden_size", "8", "--num_layers", "1", "--threads", "1",
    "--dropout", "0.1", "--checkpoint_steps", "3", "--upload", "sync",
)  # fmt: skip


def start(*words: str, dies_at: int = 0, home: str = "home") -> subprocess.CompletedProcess:
    """Run the command line as on HOST; let it die before the loss of that number is computed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "TRAIN_"))}
    env |= {
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "TRAIN_HOME": str(FOLDER / home),
        "PYTHONPATH": str(ROOT),
        "LC_ALL": "C.UTF-8",
        "USER": "golden",
        "LOGNAME": "golden",
    }
    command = [sys.executable, __file__, str(dies_at), *words]
    return subprocess.run(command, cwd=FOLDER, env=env, capture_output=True, text=True)


def run_of(done: subprocess.CompletedProcess, code: int = 0) -> str:
    """Return the ID of the run that a command trained."""
    assert done.returncode == code, done.stdout + done.stderr
    [line] = [text for text in done.stdout.splitlines() if ", attempt " in text]
    return line.split()[1].removesuffix(",")


def make() -> dict[str, str]:
    """Make the runs in FOLDER; return what each is, to its ID."""
    sys.path.insert(0, str(HERE.parent))
    from support import write_table

    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    write_table(FOLDER / "table.csv", num_rows=200)
    small = ("--log_model", "false")
    runs = {"finished": run_of(start("run", *OPTIONS, "--register", "golden"))}
    runs["fork"] = run_of(
        start("run", "--resume_run", runs["finished"], "--resume_epoch", "2", "--fork", "true",
              "--lr", "0.004", *small)
    )  # fmt: skip
    killed = start("run", *OPTIONS, *small, "--seed", "1", dies_at=15)
    runs["killed"] = run_of(killed, -signal.SIGKILL)
    # What the killed run would have been.
    runs["undisturbed"] = run_of(start("run", *OPTIONS, *small, "--seed", "1", home="other"))
    off = ("--upload", "off", "--epochs", "2")
    runs["off"] = run_of(start("run", *OPTIONS, *small, "--seed", "2", *off))
    # Its newest checkpoint is on this disk only, when another disk goes on with the run.
    waiting = start("run", *OPTIONS, *small, "--seed", "3", "--upload", "async", dies_at=-13)
    runs["overtaken"] = run_of(waiting, -signal.SIGKILL)
    run_of(start("run", "--resume_run", runs["overtaken"], "--take_over", "true", home="other"))
    return runs


def main() -> None:
    """Make the runs, and pack what was stored of them."""
    runs = make()
    shutil.rmtree(FOLDER / "other")
    (FOLDER / "runs.json").write_text(json.dumps(runs, indent=1))
    with tarfile.open(HERE / "runs.tar.xz", "w:xz", preset=9) as archive:
        archive.add(FOLDER, arcname=".", filter=anonymous)
    print(json.dumps(runs, indent=1), (HERE / "runs.tar.xz").stat().st_size)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out who owns a file on the machine it was made on."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def child(dies_at: int, words: list[str]) -> None:
    """Be the command line on HOST; a negative `dies_at` keeps epoch 2 from the store, too."""
    from onward.checkpoint.store import CheckpointStore
    from onward.system import environment, git, processes
    from train import cli
    from train.tabular.task import TabularTask

    processes.machine = environment.hostname = lambda: HOST
    git.code_version, git.code_diff = (lambda: "golden"), (lambda: b"")
    loss, put, losses = TabularTask.loss, CheckpointStore.put, []

    def counted(self, model, indices):
        losses.append(1)
        if len(losses) == abs(dies_at):
            while dies_at < 0 and not list(Path(os.environ["TRAIN_HOME"]).glob("runs/*/*/epoch_2")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(self, model, indices)

    def held_back(self, folder, manifest, *more):
        if dies_at < 0 and manifest.epoch == 2:
            threading.Event().wait()
        return put(self, folder, manifest, *more)

    TabularTask.loss, CheckpointStore.put = counted, held_back
    cli.main(words)


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else child(int(sys.argv[1]), sys.argv[2:])
