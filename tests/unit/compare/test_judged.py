"""What a run is judged by drives all that ranks, chooses and names.

Accuracy says the opposite throughout these runs, so that whatever goes by it is found out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import command, report_html
from orchestrator.compare.runs import load
from orchestrator.compare.trial_tables import epoch_table, trial_table
from orchestrator.compare.winners import select_model, winners
from orchestrator.engine.finals import due
from orchestrator.engine.scheduler import Scheduler
from orchestrator.launch.warm_start import _ranked
from orchestrator.ledger import retention
from orchestrator.ledger.session import state_of
from orchestrator.ops.live import event_line, render
from orchestrator.ops.status import summary, view
from orchestrator.simulate.replay import replay_of
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import SyntheticWorld, Training, tournament
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.run import RunSpec
from orchestrator.tracking import view as mlflow_view
from orchestrator.tracking.links import RecordedRun, links_of
from tests.unit.compare.compare_runs import RunFolder, compared, search_run, shown
from trainables.config import Assignment
from trainables.errors import UserError
from trainables.metrics import PLAIN, metric_of

JUDGED = ("macro_f1", "loss", "auroc", "recall:7", "precision:7@0.9")
VALUES = {"good": [0.5, 0.9], "better": [0.6, 0.95], "early": [0.97, 0.4]}


def values_of(name: str, metric: str) -> list[float]:
    """The same order of trials, whichever direction is better."""
    return [1.5 - v if metric == "loss" else v for v in VALUES[name]]


def one_search(folder: Path, metric: str) -> tuple[Path, dict[str, str]]:
    run = RunFolder(folder, ("vit", "resnet"), max_epochs=2, metric=metric)
    trials = {name: run.trial("vit", values_of(name, metric)) for name in VALUES}
    trials["other"] = run.trial("resnet", values_of("good", metric))
    return run.close(), trials


@pytest.mark.parametrize("metric", JUDGED)
def test_the_best_trial_is_best_by_it(metric: str, tmp_path: Path) -> None:
    folder, trials = one_search(tmp_path / "run", metric)
    state = state_of(folder)
    best = trials["early"]  # by its first epoch
    assert winners(state)["vit"].trial == best
    model = select_model(state)
    assert (model.trial.trial, model.epoch) == (best, 1)
    assert model.value == values_of("early", metric)[0]
    assert model.val_top1 == state.trials[best].reports[1].metrics["val_top1"]
    assert metric in model.why
    assert retention.best(folder, state.trials[best]) is None  # no checkpoint was written
    entry = next(e for e in compared(folder)["families"] if e["family"] == "vit")
    assert (entry["metric"], entry["best_trial"], entry["best_epoch"]) == (metric, best, 1)
    assert entry["best_value"] == model.value
    assert entry["best_val_top1"] == model.val_top1
    assert _ranked(list(state.trials.values()), metric_of(metric))[0].trial == best


@pytest.mark.parametrize("metric", JUDGED)
def test_answer_table_and_report_name_it(metric: str, tmp_path: Path) -> None:
    folder = search_run(tmp_path / "run", metric=metric)
    noun, document = metric_of(metric).noun, compared(folder)
    assert document["metric"]["name"] == metric
    assert document["metric"]["definition"]
    assert f"by validation {noun}" in document["answer"]
    ranked = [place["family"] for place in document["inference"]["places"]]
    assert ranked == ["hybrid", "vit", "resnet"]
    page, text = report_html(compare([load(folder)])), shown(folder)
    unit = "nats" if metric == "loss" else "%"
    for axis in (f"best validation {noun}, {unit}", f"best finished {noun}, {unit}"):
        assert axis in page
    assert f"validation {noun}, {unit}" in page
    assert not re.search(r"validation accuracy|best accuracy", page + text)
    assert f"Judged by {noun} ({metric})" in text
    assert ("nats" in text) == (metric == "loss")
    assert f"--metric {metric}" in command(load(folder)).replace("'", "")
    keys = ("best_val_top1", "best_value")
    assert [document["budget"][key] is None for key in keys] == [True, False]


def test_runs_of_before_are_judged_by_accuracy(tmp_path: Path) -> None:
    document = compared(search_run(tmp_path / "run"))
    assert document["metric"]["name"] == "top1"
    assert document["budget"]["best_val_top1"] == document["budget"]["best_value"]
    for entry in document["families"]:
        assert entry["best_val_top1"] == entry["best_value"]
    assert "Judged by" not in shown(tmp_path / "run")


def test_runs_that_are_judged_by_different_metrics_are_not_compared(tmp_path: Path) -> None:
    folders = [search_run(tmp_path / name, metric=name) for name in ("top1", "macro_f1")]
    with pytest.raises(UserError, match=r"judged by one metric; got top1 .*, macro_f1"):
        compare([load(folder) for folder in folders])


@pytest.mark.parametrize("metric", ["macro_f1", "loss"])
def test_tables_have_it_beside_accuracy(metric: str, tmp_path: Path) -> None:
    folder, trials = one_search(tmp_path / "run", metric)
    rows = {row["trial"]: row for row in trial_table([load(folder)]).to_pylist()}
    row = rows[trials["early"]]
    assert (row["metric"], row["best_value_epoch"], row["best_epoch"]) == (metric, 1, 2)
    assert row["best_value"] == values_of("early", metric)[0]
    assert f"val_{metric}" in epoch_table([load(folder)]).column_names


@pytest.mark.parametrize("metric", ["macro_f1", "loss", "precision:7@0.9"])
def test_status_and_mlflow_go_by_it(metric: str, tmp_path: Path) -> None:
    folder, trials = one_search(tmp_path / "run", metric)
    state, best = state_of(folder), trials["early"]
    vit = next(family for family in view(state, running=False).families if family.family == "vit")
    assert (vit.best_trial, vit.best_value) == (best, values_of("early", metric)[0])
    event = {"event": "finished", "trial": best}
    assert f"best val_{metric} {vit.best_value:.4f}" in str(event_line(event, state))
    rows = {name: value for name, value, *_ in mlflow_view.final_metrics(state.trials[best])}
    name = mlflow_view.metric_name(f"best_val_{metric}")
    assert re.fullmatch(r"[\w.\- :]+", name)
    assert rows[name] == vit.best_value
    assert rows["best_val_top1"] == state.trials[best].best(PLAIN["top1"])[0]
    assert mlflow_view.epoch_metrics(state.trials[best])[0][0] == name.removeprefix("best_")
    assert mlflow_view.trial_tags(state, state.trials[best], "p", False)["metric"] == metric
    recorded = RecordedRun("7", {trial: trial for trial in state.trials})
    trials_page = links_of(state, recorded, "http://h").pop().address
    assert f"orderByAsc={'true' if metric == 'loss' else 'false'}" in trials_page
    table = mlflow_view.summary_table(compared(folder))
    assert table["data"][0][0] == "vit"


@dataclass(frozen=True)
class Contrary:
    """A world whose accuracy falls as the judged metric gets better."""

    metric: str
    world: SyntheticWorld = field(default_factory=SyntheticWorld)

    def train(self, assignment: Assignment) -> Training:
        made = self.world.train(assignment)
        return replace(made, metrics=tuple(map(self._judged, made.metrics)))

    def _judged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        share = metrics["val_top1"]
        value = 2 * (1 - share) if self.metric == "loss" else share
        return {**metrics, "val_top1": 1 - share, f"val_{self.metric}": value}

    def correct(self, assignment: Assignment) -> npt.NDArray[np.bool_]:
        return self.world.correct(assignment)


def judged_by(metric: str, spec: RunSpec) -> RunSpec:
    return replace(spec, sweeps=tuple(replace(sweep, metric=metric) for sweep in spec.sweeps))


@pytest.mark.parametrize("kind", ["asha", "pasha", "top_k"])
@pytest.mark.parametrize("metric", ["macro_f1", "loss"])
def test_a_run_prunes_and_chooses_as_one_by_accuracy_on_the_same_curves(
    metric: str, kind: str, tmp_path: Path
) -> None:
    """The same shares as accuracies, as macro F1, as losses: the same decisions."""
    spec = tournament(searches=1, scheduler=SchedulerSpec(kind=kind))
    plain = simulate(spec, SyntheticWorld(), tmp_path / "plain", slots=1).state
    run = simulate(judged_by(metric, spec), Contrary(metric), tmp_path / metric, slots=1)
    state = run.state

    def decided(of: Any) -> dict[str, object]:
        return {t.trial: (t.status, t.rungs, t.epoch) for t in of.trials.values()}

    # A cut-off between two results is another one on the scale of losses.
    if metric != "loss" or kind != "asha":
        assert decided(state) == decided(plain)
        assert {t.trial for t in winners(state).values()} == {
            t.trial for t in winners(plain).values()
        }
    for name, trial in winners(state).items():
        finished = [
            t for t in state.trials.values() if t.search_name == name and t.status == "finished"
            and t.stage == "search"
        ]  # fmt: skip
        best = (min if metric == "loss" else max)(t.best()[0] for t in finished)
        assert trial.best()[0] == best
        assert state.frozen is not None
        frozen = state.frozen.detail["winners"][name]
        assert frozen == {**frozen, f"val_{metric}": best}
    reasons = [t.reason for t in state.trials.values() if t.status == "pruned"]
    if kind == "asha":
        side = "above" if metric == "loss" else "below"
        assert reasons
        assert all(re.match(rf"val_{metric} [\d.]+ {side} the cut-off", why) for why in reasons)
    assert due(state.spec, state, reopen=False) is None
    assert summary(view(state, running=False))
    assert render(view(state, running=True), now=0.0)


def test_a_run_judged_by_loss_is_replayed_to_the_same_decisions(tmp_path: Path) -> None:
    spec = judged_by("loss", tournament(searches=1))
    simulate(spec, Contrary("loss"), tmp_path / "run", slots=2)
    replayed = replay_of(tmp_path / "run", (), slots=None, orders=3)
    assert replayed.differs_from_record == ()
    assert all(one.regret is None or one.regret.low >= 0 for one in replayed.as_it_ran.families)


def test_a_report_without_it_is_not_judged(tmp_path: Path) -> None:
    """Nor is it pruned: nothing is known of it."""
    spec = judged_by("macro_f1", tournament(searches=1))
    state = simulate(spec, SyntheticWorld(), tmp_path, slots=1).state
    assert {trial.status for trial in state.trials.values()} == {"finished"}
    assert winners(state) == {}
    assert isinstance(
        Scheduler({s.candidate: s.scheduler for s in spec.sweeps}, state, print, seed=0), Scheduler
    )
