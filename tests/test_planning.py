"""How often to save on a cluster that fails: the formula, the simulation, and the command."""

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from onward.cli import main as onward_cli
from onward.cli.planned import share_in_words, time_in_words
from onward.cli.planning import COUNT, RATE, SIZE
from onward.errors import UsageError
from onward.planning.cluster import Cluster
from onward.planning.plan import Plan
from onward.planning.simulation import lives, simulate
from onward.planning.waste import (
    best_seconds,
    best_steps,
    daly_seconds,
    keeps_up,
    saved_every,
    shares,
    young_seconds,
)

HOURLY = Cluster(nodes=1, mtbf_hours=1.0, state_bytes=96e9)  # it fails once an hour
AS_WORDS = {
    "state_bytes": "state",
    "node_bytes_per_second": "node_throughput",
    "store_bytes_per_second": "store_throughput",
}


def call(*arguments):
    """Run `onward plan` in this process."""
    return CliRunner().invoke(onward_cli.main, ["plan", *arguments])


def planned(*arguments):
    """Return what `onward plan --json` says."""
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# --- the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize(("hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)], ids=str)
def test_the_best_interval_is_the_published_one(hours, minutes):
    """Daly (2006), figures 3 to 5: a dump of 5 minutes, and a failure every so many hours. His is
    an approximation: by less than 1 %."""
    cluster = Cluster(nodes=1, mtbf_hours=hours, stall_seconds=300)
    assert daly_seconds(cluster) / 60 == pytest.approx(minutes, rel=0.006)
    assert best_seconds(cluster) / 60 == pytest.approx(minutes, rel=0.01)


def test_where_failures_are_rare_it_is_youngs_and_dalys():
    """Their formulas are its approximations for stalls that are short beside the time to fail."""
    cluster = Cluster(nodes=1, mtbf_hours=24, stall_seconds=1.0)
    assert young_seconds(cluster) == pytest.approx(best_seconds(cluster), rel=0.01)
    assert daly_seconds(cluster) == pytest.approx(best_seconds(cluster), rel=1e-6)


def any_cluster():
    """Return clusters of all kinds."""
    number = st.floats(1e-3, 1e4)
    return st.builds(
        Cluster, nodes=st.integers(1, 10_000), mtbf_hours=number, step_seconds=number,
        state_bytes=st.floats(1, 1e14), commit_seconds=number, restart_seconds=number,
        stall_seconds=st.none() | number,
    )  # fmt: skip


@given(any_cluster(), st.integers(1, 10**6))
def test_all_of_the_time_is_told_of(cluster, steps):
    """The shares are none below 0, and add up to 1."""
    parts = shares(cluster, steps)
    each = [parts.useful, parts.again, parts.restart, parts.stall]
    assert min(each) >= 0
    assert sum(each) == pytest.approx(1, abs=1e-9)


@given(any_cluster())
def test_no_interval_that_commits_keep_up_with_is_better(cluster):
    """The best one keeps up, and its neighbours, near and far, lose as much or more."""
    best = best_steps(cluster)
    assert keeps_up(cluster, best)
    lost = shares(cluster, best).lost
    for other in {max(1, best - 1), best + 1, max(1, best // 2), 2 * best, 20 * best}:
        assert not keeps_up(cluster, other) or shares(cluster, other).lost >= lost - 1e-12


def test_of_all_intervals_none_is_better():
    """The same, of one cluster, against every interval up to an hour."""
    least = min(range(14, 3600), key=lambda steps: shares(HOURLY, steps).lost)
    assert best_steps(HOURLY) == least


def test_a_commit_costs_as_much_as_a_slower_restart():
    """A checkpoint protects from its commit on: that is as if it took longer to start again."""
    slow = Cluster(nodes=4, mtbf_hours=9, commit_seconds=300, restart_seconds=100, load_seconds=0)
    quick = Cluster(nodes=4, mtbf_hours=9, commit_seconds=0, restart_seconds=400, load_seconds=0)
    assert shares(slow, 900).useful == pytest.approx(shares(quick, 900).useful, rel=1e-12)


def test_the_store_bounds_a_commit_where_the_nodes_do_not():
    """Nodes write at once, up to what the store takes."""
    few, many = (Cluster(nodes=nodes, commit_seconds=0, state_bytes=1e12) for nodes in (4, 400))
    assert (few.commit, many.commit) == (250, 50)


# --- the simulation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "steps"),
    [
        (HOURLY, best_steps(HOURLY)),
        (HOURLY, 30),
        (Cluster(mtbf_hours=20, state_bytes=9.6e11), 500),
        (Cluster(mtbf_hours=5, state_bytes=9.6e11, stall_seconds=60), 480),
        (Cluster(mtbf_hours=1, state_bytes=9.6e11, stall_seconds=60), 130),
        # Commits that do not keep up: some are passed over.
        (Cluster(mtbf_hours=20, state_bytes=9.6e11), 50),
        (Cluster(mtbf_hours=1, state_bytes=9.6e11, stall_seconds=60), 100),
        (Cluster(mtbf_hours=1, state_bytes=9.6e11, stall_seconds=0), 7),
    ],
)
def test_a_simulated_cluster_loses_what_the_formula_says(cluster, steps):
    """Over 20,000 failures, within 4 standard errors, which are at most 2 % of it."""
    found = simulate(cluster, steps, 20_000)
    exact = shares(cluster, steps).lost
    assert found.error < 0.02 * exact
    assert abs(found.lost - exact) < 4 * found.error
    restarting = sum(min(life.seconds, cluster.restart) for life in found.lives)
    seconds = sum(life.seconds for life in found.lives)
    assert restarting / seconds == pytest.approx(shares(cluster, steps).restart, rel=0.05)


def test_the_events_of_a_life():
    """Checkpoints of steps 5 and 10 take 3 s; the second is safe only where it was committed."""
    cluster = Cluster(
        state_bytes=1, commit_seconds=3, restart_seconds=10, load_seconds=0, stall_seconds=1
    )
    # Restart to 10 s, step 5 at 15, stall to 16, committed at 19; step 10 at 21, 22, 25.
    table = {9: (0, 0), 14: (4, 0), 18.5: (7, 0), 20: (9, 5), 24: (12, 5), 25.5: (13, 10)}
    for seconds, (reached, durable) in table.items():
        [life] = lives(cluster, 5, [seconds])
        assert (life.reached, life.durable) == (reached, durable), seconds
    [first, second] = lives(cluster, 5, [20, 14])
    assert (second.began, second.reached, second.durable) == (5, 9, 5)
    assert (first.num_lost, second.num_lost) == (4, 4)


def test_the_same_seed_simulates_the_same_and_no_other_number_is_drawn():
    """The generator is its own."""
    state = random.getstate()
    runs = [simulate(HOURLY, 100, 50, seed).lost for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert random.getstate() == state


def test_what_is_undone_by_a_failure_is_bounded():
    """At most an interval, its stall and a commit: so it is in any life."""
    for steps in (100, 9):  # 9: one is due before the one before is committed
        plan = Plan.of(HOURLY, steps)
        lost = [life.num_lost for life in simulate(HOURLY, steps, 5_000).lives]
        most = plan.worst_seconds / HOURLY.step_seconds
        assert 0.9 * most < max(lost) <= most
        mean = sum(lost) / len(lost)
        if plan.keeps_up:  # whole steps are counted, without stalls
            assert mean == pytest.approx(plan.again_seconds, rel=0.2)


# --- the command ------------------------------------------------------------------------------


def test_alone_it_says_what_it_assumes():
    """Without an option there is a plan, and each number that it rests on is named."""
    done = call()
    assert done.exit_code == 0
    first, *_, last = done.stdout.splitlines()
    plan = Plan.of(Cluster())
    assert first.endswith(f"checkpoint_steps={plan.steps}")
    told = dict(word.split("=") for word in last.partition(": ")[2].split())
    declared = {o for p in onward_cli.main.commands["plan"].params for o in p.opts}
    assert {f"--{name}" for name in told} <= declared
    assert len(told) == 11
    again = call(*(word for k, v in told.items() for word in (f"--{k}", v)))
    assert again.stdout.splitlines() == done.stdout.splitlines()[:-1]
    assert "assumed" not in again.stdout


def test_the_help_shows_the_defaults_that_there_are():
    """What stands in brackets is the field's own default."""
    for param in onward_cli.main.commands["plan"].params:
        default = getattr(Cluster(), param.name, None)
        if default is not None:
            shown = re.search(r"\[(.*?)\]", param.help)[1]
            assert param.type.convert(shown, param, None) == default, param.name


def test_a_model_is_as_large_as_its_parameters():
    """Of each, a weight and two moments are saved; or what is said."""
    assert planned("--params", "8B")["cluster"]["state_bytes"] == 96e9
    given = planned("--params", "1.5b", "--bytes_per_param", "16")
    assert given["cluster"]["state_bytes"] == 24e9
    assert given["peak_bytes"] == 2 * given["kept_bytes"] == 48e9


@pytest.mark.parametrize(
    ("kind", "text", "amount"),
    [
        (SIZE, "14GB", 14e9), (SIZE, "14 gb", 14e9), (SIZE, "96e9", 96e9), (SIZE, "2GiB", 2**31),
        (SIZE, "1.5T", 1.5e12), (SIZE, "200", 200.0), (SIZE, "200B", 200.0), (SIZE, ".5kB", 500.0),
        (RATE, "500MB/s", 5e8), (RATE, "1GiB/s", 2**30), (COUNT, "8B", 8e9), (COUNT, "70b", 7e10),
        (COUNT, "400M", 4e8), (COUNT, "1T", 1e12), (COUNT, "124000000", 124e6),
    ],
)  # fmt: skip
def test_sizes_have_units(kind, text, amount):
    """Powers of 1,000; of 1,024 with an i."""
    assert kind.convert(text, None, None) == amount


@pytest.mark.parametrize(
    "text", ["", "GB", "1.2.3GB", "-1", "0", "nan", "inf", "1e999", "1XB", "x"]
)
def test_what_is_no_size_is_refused(text):
    """Each is one line that shows how to write it."""
    with pytest.raises(UsageError, match=r"write it as 14GB"):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--state", "1", "--params", "1"], "error: give either state or params"),
        (["--bytes_per_param", "8"], "error: bytes_per_param needs params"),
        (["--state", "big"], "error: state='big' is no number"),
        (["--mtbf_hours", "0"], "error: mtbf_hours='0' is no number, or too small"),
        (["--restart-seconds", "-1"], "error: restart_seconds='-1' is no number"),
        (["--plot", "waste.gif"], "error: plot=waste.gif is neither .svg nor .png"),
        (["--nodes", "0"], "error: Invalid value for '--nodes'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, message, tmp_path):
    """And exit code 2; nothing is written."""
    done = call(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_chosen_interval_is_compared_with_the_best():
    """What commits do not keep up with is said; the best one is told, with what it loses."""
    words = ["--nodes", "64", "--params", "70B", "--step_seconds", "5"]
    best, chosen = planned(*words), planned(*words, "--steps", "4")
    assert (best["is_best"], best["keeps_up"]) == (True, True)
    assert (chosen["is_best"], chosen["keeps_up"]) == (False, False)
    assert chosen["lost"] > best["lost"]
    said = call(*words, "--steps", "4").stdout
    assert f"checkpoint_steps={best['interval_steps']}; {share_in_words(best['lost'])}" in said
    assert "checkpoints are passed over" in said


def test_a_simulation_can_be_asked_for():
    """It is told with its error, and repeats itself."""
    words = ["--mtbf_hours", "50", "--simulate", "400"]
    found = planned(*words)
    assert abs(found["simulated_lost"] - found["lost"]) < 4 * found["simulated_error"]
    assert planned(*words) == found != planned(*words, "--seed", "1")
    assert "simulated, 400 failures: " in call(*words).stdout
    assert planned()["simulated_lost"] is None


@pytest.mark.parametrize(("name", "begins"), [("w.png", b"\x89PNG"), ("w.SVG", b"<?xml")])
def test_the_picture_is_drawn(name, begins, tmp_path):
    """By the ending of its name, and twice the same; nothing else is left there."""
    words = ["--steps", "20", "--step_seconds", "0.5", "--plot"]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert call(*words, str(tmp_path / folder / name)).exit_code == 0
        assert [path.name for path in (tmp_path / folder).iterdir()] == [name]
    first, second = ((tmp_path / folder / name).read_bytes() for folder in "ab")
    assert first == second
    assert first.startswith(begins)


@pytest.mark.parametrize("words", [["--help"], [], ["--simulate", "10", "--json"]])
def test_it_imports_neither_torch_nor_mlflow_nor_numpy(words):
    """It answers as fast as `onward list --help`."""
    code = (
        "import sys\nfrom onward.cli.main import main\n"
        f"try: main(['plan', *{words}])\n"
        "finally: assert not {'torch', 'mlflow', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(
    st.dictionaries(
        st.sampled_from(["mtbf_hours", "step_seconds", "state", "node_throughput", "params"]),
        st.sampled_from(["1e-29", "1e-9", "0.001", "3", "1e12", "1e29"]),
    ),
    st.sampled_from([None, 1, 10**9]),
)
def test_whatever_is_given_there_is_an_answer(options, steps):
    """Numbers far from any cluster give a plan, or one line."""
    words = [word for k, v in options.items() for word in (f"--{k}", v)]
    done = call(*words, *(["--steps", str(steps)] if steps else []))
    assert done.exit_code in (0, 2), done.exception
    assert "nan" not in done.stdout


def test_times_have_few_digits():
    """Seconds, minutes, hours, days, each in two digits."""
    lengths = itertools.accumulate([0.01] + [7.0] * 9, lambda a, b: a * b)
    shown = [time_in_words(seconds) for seconds in lengths]
    assert shown[0] == "0.01 s"
    assert [word.split()[1] for word in shown][-1] == "days"
    assert not [word for word in shown if "e+" in word]
    assert saved_every(HOURLY, 1) == math.ceil(HOURLY.commit)
