"""What people see of a run in MLflow's own pages, in a real browser.

`make screenshots` keeps the pictures, in docs/images/.
"""

import os
import re
import sys
from pathlib import Path

import pytest
from browser import find_browser, open_browser
from mlflow import MlflowClient
from playwright.sync_api import expect
from support import ROOT, environment, mlflow_server, only_run, run_command

MACHINE = Path(__file__).parent / "machine.py"
PICTURES = os.environ.get("SCREENSHOTS")  # a folder of the project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_browser() is None,
        reason="no browser; on Debian, as root: apt-get install chromium; then run this again",
    ),
]


def train(machine, *options, folder, address):
    """Train on a machine of that name, which shares no disk with others."""
    # Nothing in the pictures is of the machine that they were made on.
    env = environment(folder / machine, address, LOGNAME="user")
    command = [sys.executable, str(MACHINE), machine, "run", *options]
    done = run_command(command, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A server with a run of two attempts, 12 epochs in all: (its address, the run)."""
    folder = tmp_path_factory.mktemp("browser")
    with mlflow_server(folder / "server") as server:
        where = {"folder": folder, "address": server.address}
        first = ("--epochs", "6", "--schedule_epochs", "12", "--checkpoint_freq", "3")
        train("node-1", *first, **where)
        run = only_run(server.address)
        train("node-2", "--resume_run", run.info.run_id, "--epochs", "12", **where)
        yield server.address, run


@pytest.fixture
def pages(trained, tmp_path):
    """A new browser, told that models are trained here; at the list of the experiment's runs."""
    address, _ = trained
    folder = ROOT / PICTURES if PICTURES else tmp_path / "pictures"
    with open_browser(address, tmp_path / "profile", folder) as pages:
        page = pages.page
        page.goto(address)
        page.get_by_text("Model training", exact=True).click()
        page.get_by_role("button", name="Close", exact=True).last.click()  # an assistant
        page.get_by_role("button", name="Toggle sidebar").click()
        page.goto(f"{address}/#/experiments/0")
        yield pages


def test_a_run_is_read_and_resumed_from_mlflows_pages(trained, pages):
    """A run has its attempts below it, tells how to go on, and shows curves, checkpoints, model."""
    _, run = trained
    run_id, name, page = run.info.run_id, run.info.run_name, pages.page
    resume = f"train run --resume_run {run_id}"

    # The experiment lists the run; its second attempt is folded away below it.
    row = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name=name))
    second = page.get_by_role("link", name="attempt 2: epochs 7-12 on node-2")
    expect(row).to_be_visible()
    expect(second).to_be_hidden()
    row.get_by_role("button").click()
    expect(second).to_be_visible()

    # The run's page tells what was done, how to go on, and that there is a model.
    row.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    page.get_by_role("button", name="Expand description").click()
    commands = page.get_by_role("code").filter(has_text=resume)
    longer = " --fork true --epochs 24 --schedule_epochs 24"
    expect(commands).to_contain_text([resume + longer, "--resume_epoch best --fork true"])
    for number, epochs in ((1, "1-6"), (2, "7-12")):
        done = page.get_by_role("row", name=f"{number} epochs {epochs} on node-{number}, finished")
        expect(done).to_be_visible()
    expect(second).to_be_visible()
    model = page.get_by_role("row").filter(has=page.get_by_role("link", name="model", exact=True))
    expect(model.filter(has=page.get_by_role("gridcell", name="12", exact=True))).to_be_attached()
    metrics = page.get_by_role("heading", name=re.compile(r"^Metrics \("))
    pages.picture("run", height=int(metrics.bounding_box()["y"]))

    # It links to all runs, in a saved view with the columns by which runs are compared.
    with page.expect_popup() as opened:
        page.get_by_role("link", name="All runs").click()
    runs = opened.value
    expect(runs.get_by_role("button", name="Training", exact=True)).to_be_visible()
    expect(runs.get_by_role("columnheader", name="best_epoch").first).to_be_attached()
    places = [
        runs.get_by_role("columnheader", name=name).first.bounding_box()["x"]
        for name in ("Created", "best_val_pearson", "best_epoch", "Dataset")
    ]
    assert places == sorted(places), "the best value is the first of the view's columns"
    runs.close()

    # Each metric is one curve, through both attempts.
    page.get_by_role("tab", name="Model metrics").click()
    search = page.get_by_role("searchbox", name="Search metric charts")
    search.fill("^train_loss$|^val_(loss|pearson)$")
    charts = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(charts).to_have_count(3)
    for chart, metric in zip(charts.all(), ("train_loss", "val_loss", "val_pearson"), strict=True):
        expect(chart.get_by_role("heading", name=metric, exact=True)).to_be_visible()
        expect(chart.locator("svg .point")).to_have_count(12)
    search.blur()
    pages.picture("curves", height=612)

    # The files: the checkpoints as a table, with the command that goes on from each.
    page.get_by_role("tab", name="Artifacts").click()
    files = page.get_by_role("listitem")
    expect(files.get_by_text("logs", exact=True)).to_be_visible()
    files.get_by_text("checkpoints", exact=True).click()
    files.get_by_text("index.html", exact=True).click()
    table = page.frame_locator("iframe").get_by_role("table")
    heads = table.get_by_role("columnheader")
    expect(heads.filter(has_text=re.compile("^(epoch|val_pearson|go on)$"))).to_have_count(3)
    for epoch in (3, 6, 9, 12):
        checkpoint = table.get_by_role("row").filter(has_text=f"epoch_{epoch}")
        rest = longer if epoch == 12 else f" --resume_epoch {epoch} --fork true"
        expect(checkpoint.get_by_role("code")).to_contain_text(resume + rest)
    newest = table.get_by_role("row").filter(has_text="epoch_12")
    expect(newest.get_by_role("code")).to_be_in_viewport(ratio=1)  # the command is seen whole
    expect(files.get_by_text("epoch_9", exact=True)).to_be_in_viewport(ratio=1)  # a tree unfolds
    pages.picture("checkpoints", height=740)

    files.get_by_text("figures", exact=True).click()
    files.get_by_text("correlation.png", exact=True).click()
    figure = page.get_by_role("img", name="correlation.png")
    expect(figure).to_be_visible()
    expect(figure).not_to_have_js_property("naturalWidth", 0)

    # The model tells what it is, how it is used, and how good it was on which data.
    address, _ = trained
    model_id = MlflowClient(address).get_run(run_id).data.tags["train.model"]
    page.goto(f"{address}/#/experiments/0/models/{model_id}")
    use = page.get_by_role("code").filter(has_text=f"train predict {run_id}")
    expect(use).to_contain_text(f"mlflow models serve -m runs:/{run_id}/model")
    metric = page.get_by_role("row").filter(has_text="val_pearson")
    expect(metric).to_contain_text("diamonds")
    params = page.get_by_role("heading", name=re.compile(r"^Parameters \("))
    pages.picture("model", height=int(params.bounding_box()["y"]))

    assert not pages.errors
