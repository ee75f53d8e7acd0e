"""The command line as a user meets it: subprocesses or main(); no Ray is started here."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.cli.main import main
from orchestrator.cli.options import log_to_stderr
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.ledger.events import Ledger
from tests.unit.compare.predicted_runs import predicted_run

Run = Callable[..., tuple[int, str, list[str]]]
QUICK = ("--dry-run", "--no-measure")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(arguments...) -> (exit code, stdout, lines of stderr)`` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err.splitlines()

    return call


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """What a process that carries the run out holds."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def recorded(storage: Path, name: str = "r", trials: int = 2) -> Path:
    """A run folder with a true ledger: one trial finished, one pruned, the others queued."""
    spec = spec_of(["vit"], RunOptions(name=name, trials=trials, storage=str(storage)))
    ledger = Ledger(storage / name / "ledger.jsonl")
    header = {"schema": 1, "run": name, "spec": spec.as_dict(), "spec_hash": spec.hash()}
    ledger.append("created", detail=header)
    (sweep,) = spec.sweeps
    for index in range(trials):
        detail = {"assignment": sweep.assignment(index).as_dict(), "axes": sweep.axes(index)}
        trial = sweep.trial_name(index)
        ledger.append("submitted", trial=trial, family="vit", stage="search", detail=detail)
    for trial, value in (("vit-0000", 0.5), ("vit-0001", 0.25)):
        ledger.append("started", trial=trial, attempt=1, slot="s")
        metrics = {"val_top1": value, "train_seconds": 1.0, "eval_seconds": 0.5}
        ledger.append("reported", trial=trial, attempt=1, epoch=1, metrics=metrics, slot="s")
    ledger.append("finished", trial="vit-0000", epoch=1)
    ledger.append("pruned", trial="vit-0001", rung=1, epoch=1, reason="below")
    ledger.close()
    return storage / name


def test_help_answers_without_a_heavy_import() -> None:
    """Time follows from what is imported; a clock would fail on a busy machine."""
    code = (
        "import sys\n"
        "from orchestrator.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'timm', 'numpy', 'rich', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tournament" in done.stdout


def test_what_our_packages_log_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    log_to_stderr()  # each command asks for it
    logging.getLogger("orchestrator.engine").info("50% done")
    logging.getLogger("trainables.data").warning("warning: few images")
    logging.getLogger("orchestrator").debug("too much")
    logging.getLogger("some.library").warning("not ours")
    assert capsys.readouterr() == ("", "50% done\nwarning: few images\n")


def test_module_and_console_script_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "swep"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no command 'swep'")
    assert line.endswith("Fix: orchestrator sweep")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "vti"], "did you mean vit"),
        (["sweep", "vit", "--dataset", "digit"], "digits"),
        (["sweep", "vit", "--dataset", "no/such/folder"], "no/such"),
        (["sweep", "vit", "--set", "recipe.learning_rat=1"], "recipe.learning_rate"),
        (["sweep", "vit", "--set", "recipe.mixup=-1"], "recipe.mixup must be in [0, 10]"),
        (["sweep", "vit", "--scale", "huge"], "tiny, small, base"),
        (["sweep", "vit", "--trials", "0"], "--trials 1"),
        (["sweep", "vit", "--trials", "many"], "'many' is not a valid integer"),
        (["sweep", "vit", "--weights", "no/file.safetensors"], "no/file.safetensors"),
        (["sweep", "vit", "--set", "backbone.patch=5"], "backbone.patch"),
        (["sweep", "vit", "--set", "backbone.patch=[4,5]"], "backbone.patch"),
        (["sweep", "vit", "--set", "data.fraction=[0.5,2]"], "data.fraction"),
        (["sweep", "vit", "--name", "a/b"], "--name a-b"),
        (["sweep", "vit", "--storage", "ftp://bucket"], "--storage must be a folder"),
        (["sweep", "vit", "--tracking-uri", "runs"], "tracking URI"),
        (["sweep", "vit", "--tracking-uri", "http://127.0.0.1:PORT"], "tracking server"),
        (["sweep", "vit", "--trial", "1"], "--trials"),
        (["sweep"], "Missing argument"),
        (["claims", "lst"], "orchestrator claims list"),
        (["tournament", "vit", "vit"], "vit twice"),
        (["tournament", "vit", "vit-patches"], "equal trials"),
        (["compare", "nothing"], "orchestrator demo"),
        (["stop", "nothing"], "orchestrator demo"),
        (["ui"], "no MLflow store"),
        (["data", "info", "no/such"], "no/such"),
        (["data", "info", "digits", "--set", "recipe.mixup=1"], "only data.*"),
    ],
)
def test_a_mistake_is_told_in_lines_with_their_fix_and_nothing_is_written(
    run: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    arguments = [text.replace("PORT", str(closed_port())) for text in arguments]
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert any(said in line for line in err), err
    assert all(line.startswith("error: ") for line in err), err
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_are_told_at_once(run: Run) -> None:
    code, _, err = run("sweep", "vit", "--dataset", "digit", "--scale", "huge", "--trials", "0")
    assert code == 2
    assert len(err) == 3
    _, _, err = run("sweep", "vti", "--set", "recipe.x=1", "--set", "recipe.mixup=a")
    assert len(err) == 3


def test_what_can_never_be_scheduled_exits_3_with_what_is_asked_and_there(
    run: Run, tmp_path: Path
) -> None:
    code, _, (line,) = run("sweep", "vit", "--workers", "5000")
    assert code == 3
    assert "5000 CPU, there is" in line
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_use_by_another_spec_is_refused_with_the_difference(
    run: Run, tmp_path: Path
) -> None:
    recorded(tmp_path / "runs")
    code, _, (line,) = run("sweep", "vit", "--name", "r", "--seed", "5", "--dry-run")
    assert code == 2
    assert "vit.seed: was 0, asked 5" in line
    assert run("sweep", "vit", "--name", "r", "--trials", "3", *QUICK)[0] == 0


def test_plan_is_json_on_stdout_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    code, out, err = run("plan", "vit", "resnet", "--trials", "3", "--json", "--no-measure")
    made = json.loads(out)
    assert code == 0
    assert made["schema"] == 1
    assert (made["trials"], made["searches"]) == (24, 4)
    assert made["name"] == "vit-resnet-digits"
    assert made["families"][0]["geometry"]["tokens"] == 64
    assert err[-1].startswith("next: ")
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_several_families_is_that_of_their_tournament(run: Run) -> None:
    _, told, _ = run("plan", "vit", "resnet", "--no-measure")
    _, asked, _ = run("tournament", "vit", "resnet", *QUICK)
    assert told == asked
    assert "searches  4 for each candidate" in told
    assert "finals    136 epochs more" in told
    _, without, _ = run("tournament", "vit", "resnet", "--final-seeds", "0", *QUICK)
    assert "finals" not in without


def test_dry_run_warns_of_few_tokens_of_any_searched_patch(run: Run) -> None:
    code, out, _ = run("sweep", "vit", *QUICK, "--set", "backbone.patch=[4,16]")
    assert code == 0
    assert "4 tokens" in out
    assert "backbone.patch [4, 16]" in out


def test_status_counts_what_the_ledger_says(run: Run, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "runs", trials=3)
    code, out, _ = run("status", "r", "--json")
    (told,) = json.loads(out)["runs"]
    (family,) = told["families"]
    assert (code, told["status"]) == (0, "interrupted")
    counts = {key: family[key] for key in ("trials", "queued", "finished", "pruned", "epochs")}
    assert counts == {"trials": 3, "queued": 1, "finished": 1, "pruned": 1, "epochs": 2}
    assert family["best_val_top1"] == 0.5
    with locked(folder):
        _, out, err = run("status")
        _, _, elsewhere = run("status", "--storage", str(tmp_path / "runs"))
    assert "running" in out
    assert err == ["next: orchestrator stop r"]
    assert elsewhere == [f"next: orchestrator stop r --storage {tmp_path / 'runs'}"]


def test_stop_asks_a_running_run_and_refuses_the_others(run: Run, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "runs")
    code, _, (line,) = run("stop", "r")
    assert code == 2
    assert "not running" in line
    assert not (folder / "stop").exists()
    with locked(folder):
        assert run("stop", "r")[0] == 0
    assert (folder / "stop").exists()


def test_compare_prints_a_table_json_or_a_file(run: Run, tmp_path: Path) -> None:
    recorded(tmp_path / "runs")
    code, out, err = run("compare", "r")
    assert code == 0
    assert "vit" in out
    assert err[-1].startswith("next: ")
    _, out, _ = run("compare", "r", "--json")
    (family,) = json.loads(out)["families"]
    assert (family["finished"], family["pruned"]) == (1, 1)
    assert run("compare", "r", "--out", "report.html")[0] == 0
    assert "<html" in (tmp_path / "report.html").read_text()
    code, _, lines = run("compare", "r", "--out", "no/folder/report.html", "--out", "all.csv",
                         "--out", "report.pdf")  # fmt: skip
    assert code == 2
    assert all(part in line for part, line in zip(("no/folder", "all", "pdf"), lines, strict=True))
    code, _, (line,) = run("compare", "R2")
    assert "did you mean r" in line


def test_compare_writes_tables_beside_the_report(run: Run, tmp_path: Path) -> None:
    recorded(tmp_path / "runs")
    files = ("trials.parquet", "epochs.csv", "report.html")
    code, _, err = run("compare", "r", *(word for file in files for word in ("--out", file)))
    assert code == 0
    assert [line for line in err if line.startswith("wrote")] == [f"wrote {file}" for file in files]
    trials = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [(row["trial"], row["status"]) for row in trials] == [
        ("vit-0000", "finished"),
        ("vit-0001", "pruned"),
    ]
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 3
    assert "<html" in (tmp_path / "report.html").read_text()


def test_compare_lists_suspects_and_predictions(run: Run, tmp_path: Path) -> None:
    predicted_run(tmp_path / "runs").rename(tmp_path / "runs" / "seen")
    files = ("--suspects", "s.csv", "--out", "predictions.parquet", "--out", "r.html")
    code, out, err = run("compare", "seen", *files, "--no-images")
    assert code == 0
    rows = (tmp_path / "s.csv").read_text().splitlines()
    assert f"wrote s.csv: {len(rows) - 1} images" in err
    assert len(pq.read_table(tmp_path / "predictions.parquet")) == 6 * 360
    assert "data:image" not in (tmp_path / "r.html").read_text()
    assert "By class, on test" in out
    assert "labels are suspected" in " ".join(out.split())
    recorded(tmp_path / "runs")
    code, _, (line,) = run("compare", "r", "--suspects", "s.csv")
    assert code == 2
    assert "--final-seeds" in line
    code, _, lines = run("compare", "seen", "--suspects", "no/folder.csv")
    assert code == 2
    assert "no/folder.csv" in lines[0]
    code, _, (line,) = run("compare", "seen", "--suspects", "s.txt")
    assert code == 2
    assert "FILE.csv" in line


def test_data_info_counts_classes_by_split(run: Run) -> None:
    code, out, err = run("data", "info", "digits", "--json")
    told = json.loads(out)
    assert code == 0
    assert [row["class"] for row in told["classes"]] == [str(digit) for digit in range(10)]
    counts = told["dataset"]["counts"]
    for split, count in counts.items():
        assert sum(row[split] for row in told["classes"]) == count
    assert sum(counts.values()) == 1797
    by_class = told["dataset"]["class_counts"]
    assert by_class["val"] == [row["val"] for row in told["classes"]]
    assert err[-1].startswith("next: ")
    _, out, _ = run("data", "prepare", "digits")
    assert out.strip() == told["store"]


def test_doctor_names_what_is_wrong(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    assert code == 0
    assert json.loads(out)["cpus"] >= 1
    assert {"ray", "torch", "mlflow"} <= set(json.loads(out)["versions"])
    code, _, err = run("doctor", "--tracking-uri", f"http://127.0.0.1:{closed_port()}")
    assert code == 2
    assert err[-1].startswith("error: the tracking server")


def test_ui_refuses_a_taken_port_and_names_a_server(run: Run, tmp_path: Path) -> None:
    assert run("ui", "--tracking-uri", "http://127.0.0.1:5999")[1] == "http://127.0.0.1:5999\n"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, (line,) = run("ui", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "is taken. Fix: --port" in line


def test_interrupt_exits_130() -> None:
    """A real SIGINT, while the process waits for a tracking server that never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "plan", "vit", "--tracking-uri", uri],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            # A shell's background jobs inherit an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        time.sleep(0.5)  # until its main thread waits for the answer
        process.send_signal(2)
        # Open until the process has ended: a closed one would be a mistake of its own.
        with connection:
            _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_reproduce_prints_the_command_of_a_report(run: Run, tmp_path: Path) -> None:
    recorded(tmp_path / "runs")
    assert run("compare", "r", "--out", "r.html")[0] == 0
    code, out, err = run("reproduce", "r.html")
    assert code == 0
    assert "vit" in out
    assert spec_of(["vit"], RunOptions(name="r", trials=2)).hash() in err[-1]
    code, _, err = run("reproduce", "missing.html")
    assert code == 2
    assert "Fix:" in err[0]


def test_a_run_is_watched_until_it_ends_and_then_shown(run: Run, tmp_path: Path) -> None:
    recorded(tmp_path / "runs", "one")
    code, out, err = run("status", "one", "--watch")
    assert code == 0
    assert out.startswith("one, interrupted")
    assert err[-1].startswith("next: ")
    assert run("status", "--watch")[1] == out  # the newest
    code, _, (line,) = run("status", "--watch", "--json")
    assert code == 2
    assert "leave one of them out" in line


def test_pages_of_a_run_that_mlflow_does_not_have_are_a_warning(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is named all the same, and ``--open`` opens it."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open_new_tab", lambda address: opened.append(address) or True)
    recorded(tmp_path / "runs", "one")
    uri = f"http://127.0.0.1:{closed_port()}"
    code, out, err = run("ui", "one", "--open", "--tracking-uri", uri)
    assert (code, out) == (0, f"{uri}\n")
    assert err[0].startswith(f"warning: MLflow at {uri} failed")
    assert opened == [uri]
    code, _, (line,) = run("ui", "two", "--tracking-uri", uri)
    assert code == 2
    assert "two" in line


def test_the_next_command_is_one_that_can_be_pasted(run: Run, tmp_path: Path) -> None:
    """With the folder that was asked for, and names as a shell reads them."""
    storage = tmp_path / "my runs"
    recorded(storage)
    for words in (["compare", "r"], ["status", "r"]):
        code, _, err = run(*words, "--storage", str(storage))
        assert (code, f"--storage '{storage}'" in err[-1]) == (0, words[0] == "compare")
    run("compare", "r", "--storage", str(storage), "--out", "a page.html")
    assert "reproduce 'a page.html' " in run("reproduce", "a page.html")[2][-1]
    table = tmp_path / "my table.csv"
    rows = [f"{index % 2}-{index}.png" for index in range(20)]
    for index, name in enumerate(rows):
        Image.new("RGB", (8, 8), (12 * index, 3, 7)).save(tmp_path / name)
    table.write_text("\n".join(["path,label", *(f"{name},{name[0]}" for name in rows)]))
    code, _, err = run("data", "info", "my table.csv", "--set", "data.short_side=32")
    assert code == 0
    assert err[-1].endswith("vit --dataset 'my table.csv' --set data.short_side=32")
