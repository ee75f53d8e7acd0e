"""The cap: its units and mistakes, what counts as spent, and that no epoch passes it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine.dispatcher_state import DispatcherState, SessionOptions
from orchestrator.ledger.cost import checkpoint_bytes, device_seconds
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import replay
from orchestrator.spec import limits
from orchestrator.spec.limits import EPOCH_MARGIN, ResourceSpec, SchedulerSpec
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec
from tests.unit.crashes import killed, order_for
from trainables.config import EpochReport
from trainables.errors import UserError
from trainables.worker.messages import SlotCommand

EPOCHS = 4
ON_CPU, ON_GPU = ResourceSpec(cpus_per_worker=2), ResourceSpec(gpus_per_worker=0.5)


def run_spec(cap_s: float | None, *families: str, trials: int = 3, workers: int = 1) -> RunSpec:
    """A run of full-length trials under a cap of so many worker-seconds."""
    sweeps = tuple(
        replace(
            family_sweep(family, trials=trials),
            scheduler=SchedulerSpec(kind="none", max_epochs=EPOCHS),
            resources=ResourceSpec(num_workers=workers),
        )
        for family in families
    )
    capped = None if cap_s is None else {"cpu_hours": cap_s / 3600}
    return RunSpec(name="r", sweeps=sweeps, budget=capped)


def begun(folder: Path, spec: RunSpec, **header: Any) -> Path:
    """The ledger of a run of ``spec`` whose trials all wait."""
    path = folder / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append("created", detail={"spec": spec.as_dict(), **header})
    for index in range(spec.sweeps[0].trials):
        for sweep in spec.sweeps:
            assignment = replace(sweep.assignment(index), epochs=EPOCHS)
            detail = {"assignment": assignment.as_dict(), "axes": {}}
            name = sweep.trial_name(index)
            ledger.append("submitted", trial=name, family=sweep.family, detail=detail)
    ledger.close()
    return path


class Cluster:
    """Slots that train what they are given, each epoch for as long as ``seconds_of`` says."""

    def __init__(self, path: Path, slots: int, draw: random.Random, session: str = "s") -> None:
        options = SessionOptions(session=session, max_failures_per_trial=0)
        self.dispatcher = DispatcherState(Ledger(path), options)
        self.held: dict[str, tuple[str, int] | None] = {
            f"{session}-{i}": None for i in range(slots)
        }
        self.under_way: dict[str, int] = {}  # slot -> epoch
        self.most_at_once = 0
        self._draw = draw

    def run(self, seconds_of: Any) -> None:
        """Until nothing is under way and nothing is handed out."""
        while True:
            for name, trial in self.dispatcher.state.trials.items():
                if trial.status != "finished":  # as the dispatcher does when a trial asks
                    self.dispatcher.want(name, trial.epoch + 1)
                    self.dispatcher.budget_guard.refusal(name)
            for slot in self.held:
                if slot not in self.under_way:
                    self._ask(slot)
            self.most_at_once = max(self.most_at_once, len(self.under_way))
            if not self.under_way:
                return
            slot = self._draw.choice(sorted(self.under_way))
            trial, attempt = self.held[slot] or ("", 0)
            family = self.dispatcher.state.trials[trial].family
            report = EpochReport(self.under_way.pop(slot), {"train_seconds": seconds_of(family)})
            assert self.dispatcher.reported(slot, trial, attempt, report)

    def _ask(self, slot: str) -> None:
        held = self.held[slot]
        running = held[0] if held else None
        order = order_for(self.dispatcher, slot, "life", running)
        if order is None or order.command == SlotCommand.SHUTDOWN:
            return
        if order.command == SlotCommand.RELEASE:
            self.held[slot] = None
            self._ask(slot)
            return
        if order.assignment is not None:
            self.held[slot] = (order.assignment.trial_id, order.assignment.attempt)
        assert order.epoch is not None
        self.under_way[slot] = order.epoch


def spent(path: Path, family: str | None = None) -> float:
    return device_seconds(replay(read(path)), family)


@pytest.mark.parametrize(
    ("given_budget", "given_prices", "found"),
    [
        ("gpu_hours=4", (), ({"gpu_hours": 4.0}, None)),
        (
            "usd=20",
            ("gpu_hour=2.5", "cpu_hour=0.04"),
            ({"usd": 20.0}, {"gpu_hour": 2.5, "cpu_hour": 0.04}),
        ),
        (None, (), (None, None)),
    ],
)
def test_amounts_are_read_by_their_unit(given_budget: Any, given_prices: Any, found: Any) -> None:
    assert limits.parse(given_budget, given_prices) == found


def test_all_amounts_that_make_no_sense_are_told() -> None:
    with pytest.raises(UserError) as caught:
        limits.parse("hours=4", ("gpu_hour=0", "cpu_hour=inf", "gpu_hour"))
    assert len(caught.value.mistakes) == 4
    assert "gpu_hours, cpu_hours, usd" in caught.value.mistakes[0]
    assert all("Fix: --" in line for line in caught.value.mistakes)


def test_a_budget_must_count_what_the_run_uses() -> None:
    (line,) = limits.mistakes({"gpu_hours": 4.0}, None, ON_CPU)
    assert "Fix: --budget cpu_hours=4" in line
    (line,) = limits.mistakes({"cpu_hours": 4.0}, None, ON_GPU)
    assert "Fix: --budget gpu_hours=4" in line
    (line,) = limits.mistakes({"usd": 4.0}, {"cpu_hour": 1.0}, ON_GPU)
    assert "--price gpu_hour=DOLLARS" in line
    assert limits.mistakes({"usd": 4.0}, {"gpu_hour": 1.0}, ON_GPU) == []
    assert RunSpec(name="r", sweeps=(family_sweep("vit"),), budget={"gpu_hours": 1.0}).mistakes()


def test_a_cap_in_worker_seconds_follows_what_a_worker_holds() -> None:
    """Two CPUs a worker use up CPU-hours twice as fast; half a GPU half as fast."""

    def share_s(resources: ResourceSpec, **limit: Any) -> float | None:
        sweep = replace(family_sweep("vit"), resources=resources)
        return RunSpec(name="r", sweeps=(sweep,), **limit).search_share_s()

    assert share_s(ON_CPU, budget={"cpu_hours": 1.0}) == pytest.approx(1800)
    assert share_s(ON_GPU, budget={"gpu_hours": 1.0}) == pytest.approx(7200)
    prices = {"gpu_hour": 2.0, "cpu_hour": 0.5}
    # half a GPU and a CPU: 1.50 an hour
    assert share_s(ON_GPU, budget={"usd": 3.0}, prices=prices) == pytest.approx(7200)
    assert share_s(ON_GPU, budget={"usd": 3.0}) is None
    assert share_s(ON_GPU) is None
    assert limits.usd(3600, ON_GPU, {"cpu_hour": 1.0}) is None


def test_a_budget_is_no_part_of_what_makes_two_runs_the_same() -> None:
    plain, capped = run_spec(None, "vit"), run_spec(60, "vit")
    assert plain.hash() == replace(capped, prices={"cpu_hour": 1.0}).hash()
    assert RunSpec.from_dict(capped.as_dict()) == capped


def test_spent_is_every_second_of_every_worker_on_record(tmp_path: Path) -> None:
    path = begun(tmp_path, run_spec(None, "vit", workers=2))
    ledger = Ledger(path)
    metrics = {"train_seconds": 4.0, "eval_seconds": 2.0, "data_seconds": 1.0}
    for attempt, epoch in ((1, 1), (2, 2)):
        told = {"metrics": {**metrics, "checkpoint_seconds": 0.5}, "detail": {"setup_seconds": 3.0}}
        ledger.append("started", trial="vit-0000", attempt=attempt, slot="s")
        ledger.append("reported", trial="vit-0000", attempt=attempt, epoch=epoch, **told)
    ledger.append("reported", trial="vit-0000", attempt=2, epoch=3, metrics=metrics)
    ledger.append("noted", trial="vit-0000", reason="its worker died", slot_seconds=5.0)
    ledger.close()
    assert spent(path) == pytest.approx(2 * (2 * 10.5 + 7.0 + 5.0))
    assert spent(path, "resnet") == 0
    assert replay(read(path)).notes == ["its worker died"]


@settings(max_examples=60, deadline=None)
@given(
    cap_s=st.floats(5, 400),
    slots=st.integers(1, 4),
    families=st.sampled_from([("vit",), ("vit", "resnet"), ("vit", "resnet", "hybrid")]),
    seed=st.integers(0, 1000),
)
def test_the_cap_is_never_passed_and_all_that_fits_is_trained(
    tmp_path_factory: pytest.TempPathFactory,
    cap_s: float,
    slots: int,
    families: tuple[str, ...],
    seed: int,
) -> None:
    """As long as no epoch costs more than the margin over the costliest before it."""
    draw = random.Random(seed)
    base = {family: draw.uniform(1, 20) for family in families}
    path = begun(tmp_path_factory.mktemp("run"), run_spec(cap_s, *families))
    cluster = Cluster(path, slots, draw)
    cluster.run(lambda family: base[family] * draw.uniform(1 / EPOCH_MARGIN, 1))

    share = cap_s / len(families)
    state = replay(read(path))
    for family in families:
        assert spent(path, family) <= max(share, base[family])  # the first one is a surprise
        left = [t for t in state.trials.values() if t.family == family and t.status != "finished"]
        if left:
            assert spent(path, family) + base[family] * EPOCH_MARGIN > share
    unfinished = {t.family for t in state.trials.values() if t.status != "finished"}
    over = cluster.dispatcher.budget_guard.over()
    assert (over is not None) == bool(unfinished)
    assert over is None or all(family in over for family in unfinished)


def test_before_an_epoch_was_seen_others_wait_unless_the_plan_knows_that_they_fit(
    tmp_path: Path,
) -> None:
    cost = {"basis": "measured here", "epoch_seconds": 2.0, "first_setup_seconds": 1.0,
            "checkpoint_bytes": 1000, "params_m": 0.1, "gflops_per_image": 0.01}  # fmt: skip
    guess = {**cost, "basis": "estimated from FLOPs"}
    for name, known, cap_s, most in (
        ("unknown", None, 1000.0, 1),
        ("estimated", guess, 12.0, 1),
        ("estimated, much room", guess, 100.0, 4),
        ("measured", cost, 12.0, 3),  # 3 x 3 s and the margin fit
    ):
        header = {"forecast": {"families": {"vit": known}}}
        path = begun(tmp_path / name, run_spec(cap_s, "vit", trials=4), **header)
        cluster = Cluster(path, 4, random.Random(0))
        for trial in list(cluster.dispatcher.state.trials):
            cluster.dispatcher.want(trial, 1)
        for slot in cluster.held:
            cluster._ask(slot)
        assert len(cluster.under_way) == most, name


def test_a_larger_budget_goes_on_where_the_smaller_one_stopped(tmp_path: Path) -> None:
    path = begun(tmp_path, run_spec(10.0, "vit"))
    first = Cluster(path, 2, random.Random(0))
    first.run(lambda _: 1.0)
    killed(first.dispatcher)
    stopped_at = spent(path)
    assert 8 < stopped_at <= 10
    ledger = Ledger(path)
    ledger.append("stopped", reason="the budget has no room")
    assert replay(read(path)).stop_reason == "the budget has no room"
    ledger.append("extended", detail={"spec": run_spec(100.0, "vit").as_dict()})
    ledger.append("resumed")
    ledger.close()
    again = Cluster(path, 1, random.Random(0), session="t")
    again.run(lambda _: 1.0)
    assert {trial.status for trial in replay(read(path)).trials.values()} == {"finished"}
    assert spent(path) == 3 * EPOCHS


def test_a_lost_epoch_is_charged_to_the_next_session_too(tmp_path: Path) -> None:
    path = begun(tmp_path, run_spec(100.0, "vit", trials=1))
    cluster = Cluster(path, 1, random.Random(0))
    cluster.dispatcher.want("vit-0000", 1)
    cluster._ask("s-0")
    cluster.dispatcher.lost("s-0", "gone")
    (failed,) = [record for record in read(path) if record["event"] == "failed"]
    assert failed["slot_seconds"] == spent(path)


def test_an_interrupted_epoch_is_charged_to_the_next_session_and_then_once(
    tmp_path: Path,
) -> None:
    """Its checkpoint has it on its clock, so the report will name it: not before, and not twice."""
    path, now = begun(tmp_path, run_spec(10.0, "vit", trials=1)), 0.0
    first = DispatcherState(
        Ledger(path), SessionOptions(session="a", max_failures_per_trial=0), clock=lambda: now
    )
    first.want("vit-0000", 1)
    order = order_for(first, "a-0", "life", None)
    assert order is not None
    assert order.limit_s == 10.0
    now = 9.0
    folder = tmp_path / "checkpoints" / "vit-0000" / "attempt-1" / "epoch-0000-image-00000042"
    folder.mkdir(parents=True)
    first.losses.on_preempted("a-0", "vit-0000", str(folder), ())
    killed(first)
    assert spent(path) == 9.0

    second = DispatcherState(
        Ledger(path), SessionOptions(session="b", max_failures_per_trial=0), clock=lambda: now
    )
    second.want("vit-0000", 1)
    order = order_for(second, "b-0", "life", None)
    assert order is not None
    assert order.limit_s == pytest.approx(1.0), "what is left of the cap"
    assert second.reported("b-0", "vit-0000", 2, EpochReport(1, {"train_seconds": 9.5}))
    assert spent(path) == 9.5
    assert second.budget_guard.limit_s("vit-0000") == pytest.approx(0.5)


def test_bytes_on_disk_are_those_of_the_checkpoints(tmp_path: Path) -> None:
    assert checkpoint_bytes(tmp_path) == 0
    folder = tmp_path / "checkpoints" / "vit-0000" / "attempt-1" / "epoch-0001"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "state.json").write_bytes(b"x" * 20)
    (tmp_path / "report.html").write_bytes(b"x" * 1000)
    assert checkpoint_bytes(tmp_path) == 120
