"""The tabular task: a model that learns, metrics that are right, edges that do not crash."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from onward.metrics import History, Point
from onward.monitor import Best, Monitor
from onward.system import environment
from train.subject import TaskSubject
from train.tabular.data.dataset import prepare
from train.tabular.model import TabularMLP
from train.tabular.options import Config
from train.tabular.task import TabularTask

pytestmark = pytest.mark.usefixtures("one_thread")


def make_task(tmp_path, num_rows=400, num_columns=3, target=None, **options):
    """Return a task on a random table with one category, y = 3 x_0 + category."""
    random = np.random.default_rng(0)
    x = random.normal(size=(num_rows, num_columns))
    category = random.integers(0, 3, num_rows)
    y = 3 * x[:, 0] + category if target is None else target(num_rows)
    np.savez(tmp_path / "t.npz", x=x, c=np.array(["a", "b", "c"])[category], y=y)
    config = Config(data=str(tmp_path / "t.npz"), target="y", **options)
    return TabularTask(prepare(config), config, "cpu")


def train(task, steps, lr=1e-2):
    """Return a model after so many steps on all rows."""
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, torch.arange(task.num_samples)).backward()
        optimizer.step()
    return model


def test_a_new_model_predicts_the_mean(tmp_path):
    """Before training the loss is the target's variance, and the correlation is undefined."""
    task = make_task(tmp_path)
    model = task.build_model()
    loss = task.loss(model, torch.arange(task.num_samples))
    assert loss.item() == pytest.approx(1.0, abs=1e-5)
    metrics = task.evaluate(model)
    assert math.isnan(metrics["val_pearson"])
    assert metrics["val_rmse"] == pytest.approx(task.dataset.val.target.std(), rel=0.2)


def test_it_learns_numbers_and_categories(tmp_path):
    """A few steps predict unseen rows from a column and a category."""
    task = make_task(tmp_path)
    assert task.evaluate(train(task, 60))["val_pearson"] > 0.98


def test_metrics_are_on_the_original_scale(tmp_path):
    """The metrics are those of scipy on decoded predictions, whatever scale was trained on."""
    task = make_task(tmp_path, target=lambda n: np.exp(np.linspace(0, 9, n)), target_scale="log")
    model = train(task, 5)
    rows, scale = task.dataset.val, task.dataset.preprocessing.scale
    model.eval()
    inputs = rows.features.numeric, rows.features.categorical
    predicted = scale.decode(model(*map(torch.from_numpy, inputs)).detach().double().numpy())
    expected = {
        "val_pearson": stats.pearsonr(predicted, rows.target).statistic,
        "val_spearman": stats.spearmanr(predicted, rows.target).statistic,
        "val_rmse": np.sqrt(np.mean((predicted - rows.target) ** 2)),
        "val_mae": np.mean(np.abs(predicted - rows.target)),
    }
    metrics = task.evaluate(model)
    assert all(type(value) is float for value in metrics.values())
    assert metrics == pytest.approx({"val_loss": metrics["val_loss"], **expected}, rel=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluating_leaves_no_trace(tmp_path, mode):
    """Mode, weights and random state are the same after as before, and so is the result."""
    task = make_task(tmp_path, dropout=0.5)
    model = task.build_model().train(mode)
    before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    first, second = task.evaluate(model), task.evaluate(model)
    assert str(first) == str(second)  # text, since NaN is not equal to itself
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    assert all(module.training is mode for module in model.modules())


@pytest.mark.parametrize(
    "shape",
    [
        {"num_rows": 3, "num_columns": 1},
        {"num_rows": 32, "num_columns": 1},
        {"num_rows": 20, "num_columns": 50},
        {"num_rows": 32, "target": np.ones},
        {"num_rows": 32, "target": lambda n: np.arange(n) % 2 == 0},
        {"num_rows": 32, "target": lambda n: np.arange(n) * 1e300},
        {"num_rows": 32, "precision": "bf16"},
        {"num_rows": 32, "num_layers": 0},
    ],
)
def test_small_and_odd_tables_do_not_crash(tmp_path, shape):
    """Tiny, wide, constant, boolean and huge targets give numbers, without a warning."""
    task = make_task(tmp_path, **shape)
    metrics = task.evaluate(train(task, 3))
    assert set(metrics) == {"val_loss", "val_pearson", "val_spearman", "val_rmse", "val_mae"}
    assert math.isfinite(metrics["val_loss"])


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 0.7, 1e-12])
def test_a_constant_prediction_has_no_correlation(tmp_path, constant):
    """The correlation is undefined then, not the chance result of rounding."""
    task = make_task(tmp_path, num_rows=395)
    model = task.build_model()
    torch.nn.init.constant_(model.linear.bias, constant)
    metrics = task.evaluate(model)
    assert math.isnan(metrics["val_pearson"])
    assert math.isnan(metrics["val_spearman"])


def test_a_diverged_model_gives_metrics_that_say_so(tmp_path):
    """NaN weights give NaN metrics, not an exception."""
    task = make_task(tmp_path)
    model = task.build_model()
    torch.nn.init.constant_(model.linear.bias, math.nan)
    assert all(math.isnan(value) for value in task.evaluate(model).values())


def test_a_wide_table_is_a_ridge_regression(tmp_path):
    """With more columns than rows the default model ends at the ridge solution with alpha = W."""
    task = make_task(tmp_path, num_rows=60, num_columns=100)
    assert task.options.num_layers == 0
    model = train(task, 600, lr=3e-3).eval()
    features, width = task.dataset.train.features, model.linear.in_features
    with torch.no_grad():
        codes = torch.from_numpy(features.categorical[:, 0]).long()
        x = torch.cat([torch.from_numpy(features.numeric), model.embeddings[0](codes)], 1).double()
    target = task.dataset.preprocessing.scale.encode(task.dataset.train.target)
    y, centred = torch.from_numpy(target), x - x.mean(0)
    ridge = torch.linalg.solve(centred.T @ centred + width * torch.eye(width), centred.T @ y)
    weight = model.linear.weight.detach()[0].double()
    assert torch.nn.functional.cosine_similarity(weight, ridge, dim=0) > 0.99
    assert weight.norm() == pytest.approx(ridge.norm().item(), rel=0.05)


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_layers", "dropout"),
    [(20_000, 3, 3, 0.01), (400, 3, 3, 0.38), (125, 3, 3, 0.5), (125, 120, 0, 0.5)],
)
def test_options_left_open_follow_from_the_table(
    tmp_path, num_rows, num_columns, num_layers, dropout
):
    """Depth and dropout are chosen by the table's shape, and recorded; given ones are kept."""
    config = make_task(tmp_path, num_rows, num_columns).options
    assert (config.num_layers, config.dropout) == (num_layers, dropout)
    given = make_task(tmp_path, num_rows, num_columns, num_layers=1, dropout=0.2).options
    assert (given.num_layers, given.dropout) == (1, 0.2)


def test_bf16_keeps_weights_and_predictions_in_float32(tmp_path):
    """Mixed precision changes the arithmetic in between, by little."""
    exact, mixed = (make_task(tmp_path, precision=p) for p in ("fp32", "bf16"))
    model = train(exact, 20).eval()
    rows = torch.arange(50)
    loss = mixed.loss(model, rows)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.loss(model, rows).item(), rel=0.1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def gradients_of(model, loss):
    """Return the loss as a number, and the gradient of every weight."""
    model.zero_grad()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_the_ridge_acts_on_the_gradient_alone(tmp_path):
    """The penalty does not show in losses and predictions; its gradient is that of ridge * |w|²."""
    task = make_task(tmp_path, num_rows=60, num_columns=100)
    model, rows = train(task, 5), torch.arange(20)
    assert model.ridge > 0
    loss, gradients = gradients_of(model, task.loss(model, rows))
    expected = {name: torch.zeros_like(g) for name, g in gradients.items()}
    expected["linear.weight"] = 2 * model.ridge * model.linear.weight.detach()
    model.ridge = 0.0
    loss_without, gradients_without = gradients_of(model, task.loss(model, rows))
    assert loss == loss_without
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient - gradients_without[name], expected[name])


def test_the_penalty_is_zero_as_a_number():
    """It is added to losses that are compared with others."""
    model = TabularMLP(3, [], hidden_size=4, num_layers=0, dropout=0.0, ridge=0.5)
    torch.nn.init.ones_(model.linear.weight)
    penalty = model.penalty()
    penalty.backward()
    assert penalty.item() == 0.0
    assert torch.equal(model.linear.weight.grad, torch.full((1, 3), 2 * 0.5))


@pytest.mark.parametrize(("hidden_size", "threads"), [(192, 1), (768, 4), (4096, 8)])
def test_only_large_models_get_more_than_one_thread(tmp_path, monkeypatch, hidden_size, threads):
    """Each thread gets enough to do: on a busy machine small shares are far slower than none."""
    monkeypatch.setattr(environment, "num_cpus", lambda: 8)
    task = make_task(tmp_path, hidden_size=hidden_size, batch_size=512)
    num_weights = sum(p.numel() for p in task.build_model().parameters())
    assert environment.choose_threads(num_weights, batch_size=512, available=8) == threads
    assert TaskSubject("tabular", task, task.options).options.threads == threads


def test_what_was_left_to_choose_is_chosen_when_the_table_is_opened(tmp_path):
    """Threads and the horizon of the schedule are in the options; given ones are kept."""
    task = make_task(tmp_path, epochs=7)
    chosen = TaskSubject("tabular", task, task.options).options
    assert (chosen.schedule_epochs, chosen.threads) == (7, 1)
    task = make_task(tmp_path, epochs=7, schedule_epochs=3, threads=2)
    chosen = TaskSubject("tabular", task, task.options).options
    assert (chosen.schedule_epochs, chosen.threads) == (3, 2)


@pytest.mark.parametrize(
    ("given", "monitor", "plateau"),
    [
        (None, "val_pearson:max", "val_loss:min"),
        ("val_rmse:min", "val_rmse:min", "val_rmse:min"),
        ("val_pearson:max", "val_pearson:max", "val_loss:min"),
    ],
)
def test_a_table_is_judged_by_its_correlation_unless_told_otherwise(
    tmp_path, given, monitor, plateau
):
    """A metric that is given decides, and is what a plateau watches; said twice it is no news."""
    task = make_task(tmp_path, monitor=given)
    subject = TaskSubject("tabular", task, task.options)
    assert (str(subject.monitor), str(subject.plateau)) == (monitor, plateau)
    assert subject.options.monitor == (given if given == "val_rmse:min" else None)
    assert {subject.monitor.name, subject.plateau.name} <= set(task.evaluate(task.build_model()))


@pytest.mark.parametrize(("given", "corr"), [(None, 0.9), ("val_rmse:min", None)])
def test_a_file_holds_what_the_scripts_files_held(tmp_path, given, corr):
    """Lists of losses and correlations; a best that is no correlation is not called one."""
    task = make_task(tmp_path, monitor=given)
    keys = ("train_loss", "val_loss", "val_pearson")
    history = History(
        Point(key, 1, 1, value) for key, value in zip(keys, (0.5, 0.4, 0.9), strict=True)
    )
    assert task.extras(history, Best(0.9, 1)) == {
        "train_losses": [0.5], "val_losses": [0.4], "aucs": [0.9], "best_corr": corr,
    }  # fmt: skip
    assert task.extras(History(), None)["best_corr"] is None
    assert task.plateau == Monitor("val_loss", "min")
