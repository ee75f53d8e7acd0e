"""The ledger in a real MLflow: a local database, and a real server that is killed and comes back.

The server is the one `orchestrator ui` starts, on the database that the first tests made.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.events import FILE_NAME, Ledger
from orchestrator.tracking import follow, store
from tests.integration.conftest import line_of
from tests.integration.mlflow_server import PATIENCE_S, Server
from tests.unit.screen import screens
from trainables.errors import UserError

pytestmark = pytest.mark.mlflow

Records = list[tuple[str, str | None, dict[str, Any]]]


def submitted(trial: str, learning_rate: float, **more: Any) -> tuple[str, str, dict[str, Any]]:
    family = trial.partition("-")[0]
    assignment = {
        "recipe": {"learning_rate": learning_rate, "augment": "light"},
        "backbone": {"family": family, "scale": "tiny", "patch": None, "weights": "none"},
        "data": {"source": "digits", "fraction": 1.0},
        "seed": 1,
        "epochs": 3,
    }
    axes = {"recipe.learning_rate": learning_rate}
    detail = {"assignment": assignment, **axes, "winner": more.pop("winner", None)}
    return "submitted", trial, {"family": family, "detail": detail, **more}


def reported(trial: str, epoch: int, accuracy: float) -> tuple[str, str, dict[str, Any]]:
    metrics = {"val_top1": accuracy, "train_loss": 2.0 - epoch / 2, "train_seconds": 1.5}
    detail = {"model": f"test_{trial.partition('-')[0]}", "tokens": 64, "patch": 4}
    return (
        "reported",
        trial,
        {"attempt": 1, "epoch": epoch, "metrics": metrics, "detail": detail},
    )


def started(trial: str, attempt: int = 1) -> tuple[str, str, dict[str, Any]]:
    return "started", trial, {"attempt": attempt, "slot": "slot-0"}


def created(name: str) -> tuple[str, None, dict[str, Any]]:
    header = {
        "schema": 1,
        "run": name,
        "spec": {"name": name},
        "spec_hash": "abc",
        "environment": {"torch": "2"},
        "datasets": {"vit": {"name": "digits", "height": 8, "width": 8, "content_hash": "c0ffee"}},
        "geometry": {"vit": {"model": "test_vit"}, "resnet": {"model": "test_resnet"}},
        "code_version": "0",
    }
    return "created", None, {"detail": header}


MEASURED = {"test": {"top1": 0.7, "n": 64}, "probes": {"calibration": {"ece": 0.05}}}
RECORDS: Records = [
    submitted("vit-0000", 0.001),
    started("vit-0000"),
    reported("vit-0000", 1, 0.5),
    submitted("resnet-0000", 0.01),
    started("resnet-0000"),
    reported("resnet-0000", 1, 0.2),
    reported("vit-0000", 2, 0.75),
    ("pruned", "resnet-0000", {"rung": 1, "epoch": 1, "reason": "val_top1 0.2 below 0.5"}),
    submitted("vit-0001", 10.0),
    started("vit-0001"),
    ("failed", "vit-0001", {"reason": "diverged: loss is nan"}),
    reported("vit-0000", 3, 0.7),
    ("finished", "vit-0000", {"epoch": 3}),
    submitted("vit-0002", 0.1),
    ("frozen", None, {"detail": {"winners": {"vit": {"trial": "vit-0000"}}}}),
    submitted("vit-final-00", 0.001, stage="final", winner="vit-0000"),
    started("vit-final-00"),
    reported("vit-final-00", 1, 0.6),
    ("test_opened", None, {}),
    ("finished", "vit-final-00", {"detail": MEASURED}),
    ("closed", None, {}),
]


def append(folder: Path, records: Records) -> None:
    ledger = Ledger(folder / FILE_NAME)
    for event, trial, fields in records:
        ledger.append(event, trial=trial, **fields)
    ledger.close()


def shown(uri: str, experiment: str) -> dict[str, Any]:
    """All that MLflow holds of an experiment, by trial ("" is the parent); run ids kept apart."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    stored = client.get_experiment_by_name(experiment)
    assert stored is not None
    runs = client.search_runs([stored.experiment_id])
    names = [run.data.tags.get("trial", "") for run in runs]
    assert len(names) == len(set(names)), "a trial has two runs"
    return {
        name: {
            "id": run.info.run_id,
            "status": run.info.status,
            "name": run.info.run_name,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "params": dict(run.data.params),
            "tags": dict(run.data.tags),
            "metrics": {
                key: [(m.step, m.value, m.timestamp) for m in history(client, run, key)]
                for key in run.data.metrics
            },
            "artifacts": sorted(one.path for one in client.list_artifacts(run.info.run_id)),
            "datasets": [(one.dataset.name, one.dataset.digest) for one in datasets(run)],
        }
        for name, run in zip(names, runs, strict=True)
    }


def datasets(run: Any) -> list[Any]:
    return list(run.inputs.dataset_inputs) if run.inputs else []


def history(client: Any, run: Any, key: str) -> list[Any]:
    rows = client.get_metric_history(run.info.run_id, key)
    return sorted(rows, key=lambda row: (row.step, row.timestamp))


def check_recorded(runs: dict[str, Any], name: str) -> None:
    """What MLflow must show of RECORDS."""
    # vit-0002 never started
    assert set(runs) == {"", "vit-0000", "vit-0001", "resnet-0000", "vit-final-00"}
    parent, best, lost = runs[""], runs["vit-0000"], runs["vit-0001"]
    assert {trial: run["status"] for trial, run in runs.items()} == {
        "": "FINISHED",
        "vit-0000": "FINISHED",
        "vit-0001": "FAILED",
        "resnet-0000": "KILLED",
        "vit-final-00": "FINISHED",
    }
    assert [step for step, _, _ in best["metrics"]["val_top1"]] == [1, 2, 3]
    assert [value for _, value, _ in best["metrics"]["val_top1"]] == [0.5, 0.75, 0.7]
    assert best["metrics"]["best_val_top1"][0][:2] == (0, 0.75)
    assert best["metrics"]["device_seconds"][0][1] == 4.5
    assert best["params"]["learning_rate"] == "0.001"
    assert best["params"]["tokens"] == "64"
    expected = {
        "sweep": name,
        "candidate": "vit",
        "family": "vit",
        "model": "test_vit",
        "weights": "none",
        "backbone": "test_vit",
        "scale": "tiny",
        "dataset": "digits",
        "stage": "search",
        "status": "finished",
        "attempt": "1",
        "mlflow.parentRunId": parent["id"],
    }
    assert expected.items() <= best["tags"].items()
    assert best["start"] <= best["end"]
    assert best["artifacts"] == ["learning_curve.json"]
    assert runs["resnet-0000"]["tags"]["status"] == "pruned"
    assert lost["tags"]["reason"] == "diverged: loss is nan"
    final = runs["vit-final-00"]
    assert (final["tags"]["stage"], final["tags"]["winner"]) == ("final", "vit-0000")
    scores = {key: rows[0][:2] for key, rows in final["metrics"].items()}
    assert scores["test_top1"] == (0, 0.7)
    assert scores["calibration_ece"] == (0, 0.05)
    assert final["artifacts"] == ["learning_curve.json", "probes.json"]
    assert parent["datasets"] == final["datasets"] == [("digits", "c0ffee")]
    assert parent["name"] == name
    assert parent["artifacts"] == ["environment.json", "spec.json"]
    assert parent["metrics"]["trials_pruned"][0][1] == 1


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking") / "runs"


@pytest.fixture(scope="module")
def database(storage: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return store.default_uri(str(storage))


def test_a_local_database_shows_the_run_and_a_replay_changes_nothing(
    storage: Path, database: str
) -> None:
    records = [created("local"), *RECORDS]
    append(storage / "local", records)

    assert follow.sync(storage / "local", database) == len(records)
    first = shown(database, "local")
    check_recorded(first, "local")
    artifacts = storage / "mlartifacts" / "local" / first["vit-0000"]["id"] / "artifacts"
    curve = json.loads((artifacts / "learning_curve.json").read_text())
    assert [point["val_top1"] for point in curve["epochs"]] == [0.5, 0.75, 0.7]

    follow.sync(storage / "local", database)
    assert shown(database, "local") == first


def test_the_logged_model_of_a_store_of_before_keeps_its_id(storage: Path, database: str) -> None:
    """Its tag was what names the backbone now."""
    from mlflow.tracking import MlflowClient

    append(storage / "former", [created("former"), *RECORDS])
    follow.sync(storage / "former", database)
    run, logged = shown(database, "former")["vit-0000"]["id"], f"m-{'0f' * 16}"
    MlflowClient(database).set_tag(run, "model", logged)
    for _ in range(2):
        follow.sync(storage / "former", database)
        tags = shown(database, "former")["vit-0000"]["tags"]
        assert (tags["model"], tags["logged_model"]) == ("test_vit", logged)


def test_a_screen_has_a_run_for_each_candidate(storage: Path, database: str) -> None:
    folder = storage / "screened"
    asked = screens.spec(screens.FOUND)
    screens.write(folder, replace(asked, name="screened"), *list(screens.FOUND.values())[:3])
    follow.sync(folder, database)
    with closing(Ledger(folder / FILE_NAME)) as ledger:
        for one in list(screens.FOUND.values())[2:]:
            ledger.append("screened", candidate=one.label, detail=one.as_dict())
        ledger.append("closed", detail={"left_out": {}})
    follow.sync(folder, database)
    follow.sync(folder, database)  # changes nothing

    from mlflow.tracking import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("screened")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {run.data.tags["candidate"]: run for run in runs if run is not parent}
    assert children.keys() == screens.FOUND.keys()
    assert {run.data.tags["stage"] for run in runs} == {"screen"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {
        parent.info.run_id
    }
    first = children["a"]
    assert first.info.status == "FINISHED"
    assert {name: first.data.metrics[name] for name in ("linear_top1", "latency_ms")} == {
        "linear_top1": 390 / screens.IMAGES,
        "latency_ms": 30.0,
    }
    assert first.data.tags["model"] == "a"
    assert first.data.tags["family"] == "timm"
    assert first.data.params["train_images"] == "1000"
    assert children["f"].info.status == "FAILED"
    assert children["f"].data.tags["reason"] == "OutOfMemory: no room"
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["candidates_screened"] == 6
    assert parent.data.metrics["candidates_failed"] == 1
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"summary.json", "shortlist.json", "spec.json"} <= files


@pytest.mark.parametrize("cut", [1, 6, 12])
def test_a_prefix_and_then_the_rest_equals_the_whole(
    storage: Path, database: str, cut: int
) -> None:
    name = f"cut-{cut}"
    records = [created(name), *RECORDS]
    append(storage / name, records[:cut])
    follow.sync(storage / name, database)
    early = shown(database, name)
    assert early[""]["status"] == "RUNNING"

    append(storage / name, records[cut:])
    follow.sync(storage / name, database)
    late = shown(database, name)
    check_recorded(late, name)
    assert {key: late[key]["id"] for key in early} == {key: run["id"] for key, run in early.items()}


def test_a_stopped_run_is_killed_and_opens_again_when_it_goes_on(
    storage: Path, database: str
) -> None:
    folder = storage / "stopped"
    append(folder, [created("stopped"), *RECORDS[:3], ("stopped", None, {})])
    follow.sync(folder, database)
    before = shown(database, "stopped")
    assert {name: run["status"] for name, run in before.items()} == {
        "": "KILLED",
        "vit-0000": "KILLED",
    }
    assert before["vit-0000"]["tags"]["status"] == "stopped"
    assert "best_val_top1" not in before["vit-0000"]["metrics"]

    append(folder, [("resumed", None, {}), started("vit-0000", attempt=2)])
    follow.sync(folder, database)
    again = shown(database, "stopped")
    assert {run["status"] for run in again.values()} == {"RUNNING"}
    assert again["vit-0000"]["tags"]["attempt"] == "2"

    # The second attempt repeats epoch 1: it counts once.
    append(folder, [reported("vit-0000", 1, 0.9), *RECORDS[3:]])
    follow.sync(folder, database)
    end = shown(database, "stopped")
    assert [value for _, value, _ in end["vit-0000"]["metrics"]["val_top1"]] == [0.5, 0.75, 0.7]
    assert end["vit-0000"]["status"] == end[""]["status"] == "FINISHED"


def test_a_run_made_twice_is_reduced_to_the_first(storage: Path, database: str) -> None:
    from mlflow.tracking import MlflowClient

    folder = storage / "twice"
    append(folder, [created("twice"), *RECORDS[:3]])
    follow.sync(folder, database)
    first = shown(database, "twice")["vit-0000"]
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("twice")
    assert experiment is not None
    # As after a creation whose answer was lost on its way.
    client.create_run(experiment.experiment_id, first["start"] + 1, first["tags"], "vit-0000")

    follow.sync(folder, database)
    assert shown(database, "twice")["vit-0000"]["id"] == first["id"]


def test_a_deleted_child_does_not_stop_the_others(
    storage: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    folder = storage / "deleted"
    mirror = follow.Mirror(folder, database, None)
    records = [created("deleted"), *RECORDS]
    append(folder, records[:6])
    mirror.flush()
    MlflowClient(database).delete_run(shown(database, "deleted")["resnet-0000"]["id"])

    append(folder, records[6:])
    mirror.flush()
    assert [line.split(":")[0] for line in caplog.messages] == ["resnet-0000 is no longer mirrored"]
    runs = shown(database, "deleted")
    assert runs["vit-0000"]["status"] == runs[""]["status"] == "FINISHED"


@pytest.fixture(scope="module")
def server(storage: Path, database: str) -> Iterator[Server]:
    if not Path(database.removeprefix("sqlite:///")).exists():  # when this test runs alone
        append(storage / "first", [created("first")])
        follow.sync(storage / "first", database)
    one = Server(storage, database)
    try:
        one.start()
        yield one
    finally:
        one.kill()


def start_follower(folder: Path, uri: str, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "orchestrator.tracking.follow",
        "follow",
        str(folder),
        "--uri",
        uri,
    ]
    return subprocess.Popen(
        [*command, *more], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until_shown(uri: str, name: str, trial: str, epochs: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            if shown(uri, name).get(trial, {"tags": {}})["tags"].get("epochs") == epochs:
                return
        except AssertionError:
            pass
        time.sleep(0.2)
    pytest.fail(f"{trial} never showed {epochs} epochs")


def test_the_ui_server_serves_what_was_written_without_it(
    storage: Path, database: str, server: Server
) -> None:
    append(storage / "seen", [created("seen"), *RECORDS])
    follow.sync(storage / "seen", database)
    run = shown(database, "seen")["vit-0000"]["id"]
    url = f"{server.uri}/get-artifact?path=learning_curve.json&run_uuid={run}"
    with urllib.request.urlopen(url, timeout=20) as response:
        assert json.load(response)["trial"] == "vit-0000"


def test_a_killed_server_loses_nothing(storage: Path, server: Server) -> None:
    folder = storage / "outage"
    records = [created("outage"), *RECORDS]
    append(folder, records[:4])
    follower = start_follower(folder, server.uri)
    try:
        wait_until_shown(server.uri, "outage", "vit-0000", "1")
        server.kill()
        append(folder, records[4:-1])
        line_of(follower, "is out, records wait")  # the ledger goes on without it
        assert follower.poll() is None
        append(folder, records[-1:])
        server.start()
        wait_until_shown(server.uri, "outage", "vit-0000", "3")
        # After the ledger's end; what is drawn and counted is for the unit tests.
        (folder / "plots").mkdir()
        (folder / "plots" / "curve-vit.svg").write_text("<svg/>")
        (folder / "report.html").write_text("<html></html>")
        comparison = {"answer": "Nothing to choose.", "families": []}
        (folder / "comparison.json").write_text(json.dumps(comparison))
        _, errors = follower.communicate(timeout=PATIENCE_S)
    finally:
        follower.kill()
    assert follower.returncode == 0, errors
    assert "MLflow is back" in errors
    runs = shown(server.uri, "outage")
    left = ["comparison.json", "plots", "report.html", "summary.json"]
    assert runs[""]["artifacts"] == sorted(["environment.json", "spec.json", *left])
    assert runs[""]["tags"]["mlflow.note.content"].startswith("Nothing to choose.")
    runs[""]["artifacts"] = [one for one in runs[""]["artifacts"] if one not in left]
    check_recorded(runs, "outage")


def test_a_follower_whose_parent_is_gone_catches_up_and_leaves(
    storage: Path, server: Server
) -> None:
    folder = storage / "orphan"
    append(folder, [created("orphan"), *RECORDS[:3]])
    follower = start_follower(folder, server.uri, "--experiment", "elsewhere")
    _, errors = follower.communicate(timeout=PATIENCE_S)  # closes its standard input
    assert follower.returncode == 0, errors
    assert errors == ""
    runs = shown(server.uri, "elsewhere")
    assert {run["status"] for run in runs.values()} == {"KILLED"}
    assert runs["vit-0000"]["metrics"]["val_top1"][0][:2] == (1, 0.5)


def test_sync_tells_mistakes_in_one_line(storage: Path, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds ledger\.jsonl"):
        follow.sync(tmp_path, server.uri)

    append(tmp_path, [created("refused")])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="refuses connections") as caught:
            follow.sync(tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert len(caught.value.mistakes) == 1
