"""What many runs, many checkpoints and many trainers cost: seconds, against one `mlflow server`.

    python benchmarks/load.py                     with 1,000 runs and 2,000 checkpoints
    python benchmarks/load.py --trainers 16       so many processes that train at once

Each command is a process of its own; what `import mlflow` alone takes is told beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the server of the tests: a real one

import many  # noqa: E402
from support import client, environment, mlflow_server  # noqa: E402

OPEN = """
import sys, time, mlflow, torch, onward, onward.script.open, onward.tracking.client
began = time.monotonic()
model = torch.nn.Linear(2, 1)
state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
options = {"checkpoint_steps": 5000, "checkpoint_minutes": 0, "log_model": False}
with onward.open_run(state, resume_run=sys.argv[1], **options) as run:
    for step in run.steps(range(5001 + int(sys.argv[2]))):
        if began:
            print("opened in", time.monotonic() - began, file=sys.stderr)
            began = 0
        state["optimizer"].step()
"""
TRAIN = """
import sys, time, torch, onward
sys.argv = ["trainer"]
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.01)}
with onward.open_run(state, minimize="loss", checkpoint_freq=5, log_model=False) as run:
    began = time.monotonic()
    for epoch in run.epochs(range(20)):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            time.sleep(0.05)
            loss = model(torch.ones(4, 8)).square().mean()
            state["optimizer"].zero_grad(); loss.backward(); state["optimizer"].step()
        run.log(loss=float(loss))
    print("trained in", time.monotonic() - began, file=sys.stderr)
"""


def seconds_of(words: list[str], env: dict[str, str], folder: Path) -> tuple[float, str]:
    """Run a command to its end; return how long it took, and what it said."""
    began = time.monotonic()
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return time.monotonic() - began, done.stderr


def lists_and_resumes(runs: int, checkpoints: int, rounds: int) -> None:
    """Print the seconds of a list of runs, one of checkpoints, `latest` and `auto`."""
    with tempfile.TemporaryDirectory() as name, mlflow_server(Path(name) / "server") as server:
        folder = Path(name)
        os.environ |= {"MLFLOW_TRACKING_URI": server.address, "TRAIN_HOME": f"{folder}/home"}
        script, api = folder / "trainer.py", client(server.address)
        script.write_text(OPEN)
        env = environment(folder / "home", server.address)
        seconds_of([sys.executable, str(script), "auto", "0"], env, folder)
        [run] = api.search_runs(["0"])
        run_id = run.info.run_id
        api.update_run(run_id, status="KILLED")
        many.add_checkpoints(server.folder, run_id, checkpoints)
        many.add_runs(server.folder, run_id, runs)
        onward = [sys.executable, "-m", "onward", "list"]
        ways = {"import mlflow": [sys.executable, "-c", "import mlflow"], "list": onward}
        ways["list of the checkpoints"] = [*onward, run_id]
        for way, words in ways.items():
            found = [seconds_of(words, env, folder)[0] for _ in range(rounds)]
            print(f"{way}: {statistics.median(found):.2f} s", flush=True)
        steps = 0
        for wanted in ("latest", "auto"):
            opened = []
            for number in range(rounds):
                env["TRAIN_HOME"] = f"{folder}/home-{wanted}-{number}"
                steps += 1
                words = [sys.executable, str(script), wanted, str(steps)]
                said = seconds_of(words, env, folder)[1]
                api.update_run(run_id, status="KILLED")
                opened.append(float(said.split("opened in ")[1].split()[0]))
            print(f"{wanted}: {statistics.median(opened):.2f} s to the first step", flush=True)


def trainers(number: int) -> None:
    """Print how long so many processes take for what they train, and how many ended well."""
    with tempfile.TemporaryDirectory() as name, mlflow_server(Path(name) / "server") as server:
        folder = Path(name)
        (folder / "trainer.py").write_text(TRAIN)
        began, processes = time.monotonic(), []
        for at in range(number):
            env = environment(folder / f"home_{at}", server.address)
            words = [sys.executable, str(folder / "trainer.py")]
            file = (folder / f"said_{at}.txt").open("w+")
            processes.append(
                (
                    subprocess.Popen(
                        words, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=file
                    ),
                    file,
                )
            )
        codes = [process.wait() for process, _file in processes]
        seconds = time.monotonic() - began
        trained = []
        for _process, file in processes:
            file.seek(0)
            trained += [float(s.split()[0]) for s in file.read().split("trained in ")[1:]]
        runs = client(server.address).search_runs(["0"])
        rows = [len(client(server.address).get_metric_history(r.info.run_id, "loss")) for r in runs]
        finished = sum(run.info.status == "FINISHED" for run in runs)
        print(f"{number} trainers: codes {sorted(set(codes))}, {finished} FINISHED, all in "
              f"{seconds:.0f} s; 20 epochs of 0.5 s in {min(trained):.1f} to {max(trained):.1f} s; "
              f"points of each run: {sorted(set(rows))}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--checkpoints", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trainers", type=int, default=0)
    args = parser.parse_args()
    if args.trainers:
        trainers(args.trainers)
    else:
        lists_and_resumes(args.runs, args.checkpoints, args.rounds)


if __name__ == "__main__":
    main()
