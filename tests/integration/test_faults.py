"""Every fault that we know of, as a row of one table: ``make test-faults``.

Whatever happens, a command ends with an exit code of the list and no traceback. A run that was
interrupted goes on by the same command until it is done: no trial is lost, no epoch counts twice,
and the winner is that of a run that nothing happened to. In a row of several faults each comes once
the run has gone on after the one before: starting is most of what a sweep this small costs.
``make test-faults-long`` takes each alone as well, at several moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from orchestrator.compare.winners import winners
from orchestrator.ledger.events import FILE_NAME
from orchestrator.tracking import store
from tests.integration.conftest import PATIENCE_S, Shell
from tests.integration.mlflow_server import free_port
from tests.integration.test_crashes import kill, outcome_of
from tests.integration.test_sweep import epochs
from trainables.errors import EXIT_CODES, RESUMABLE
from trainables.storage.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

# One slot and no pruning: whatever is trained again, every number can be compared.
SWEEP = (
    "sweep", "resnet", "--name", "run", "--trials", "2", "--max-epochs", "9", "--no-measure",
    "--set", "scheduler.kind=none", "--set", "resources.max_slots=1",
    "--set", "resources.max_failures_per_trial=20",
    "--set", "data.train_limit=100", "--set", "recipe.batch_size_per_worker=20",
)  # fmt: skip
SEEDS = range(max(1, int(os.environ.get("FAULT_SEEDS", "1")) // 100))
HANGS_S = (20, 90, 200)
SLEEP_S = 90  # longer than any of Ray's health checks waits
MAX_COMMANDS = 4  # that are typed until the run is done, after the last fault
PARTS = {
    "worker": "RayTrainWorker",
    "dispatcher": "ray::Dispatcher",
    "thin trial": "ray::ResourceTrainable",
    "controller": "ray::TrainController",
    "raylet": "raylet/raylet",
    "GCS": "gcs_server",
    "mirror": "orchestrator.tracking.follow",
    "driver": "-m\0orchestrator\0sweep",
}


def refuse_tracebacks(code: int, *texts: str) -> None:
    assert code in EXIT_CODES
    assert all("Traceback" not in text for text in texts)


# In the middle of a run: what happens to it, while its driver is at work.

Fault = Callable[[Shell, "subprocess.Popen[str]"], None]


def wait_for_processes(shell: Shell, text: str) -> list[int]:
    """Those with ``text`` in their command lines; between two trials there may be none."""
    assert wait_until(lambda: bool(shell.processes(text)), patience_s=60, poll_s=0.1), text
    return shell.processes(text)


def killed(*names: str) -> Fault:
    def fault(shell: Shell, driver: subprocess.Popen[str]) -> None:
        for name in names:
            wait_for_processes(shell, PARTS[name])
        kill([pid for name in names for pid in shell.processes(PARTS[name])])

    return fault


def lost_with(name: str) -> Fault:
    """As :func:`killed`, of what a driver does not go on without."""

    def fault(shell: Shell, driver: subprocess.Popen[str]) -> None:
        killed(name)(shell, driver)
        code = driver.wait(240)
        # Until Ray is missed its workers train on: with little left they come to the run's end.
        ended = name != "driver" and code == 0 and shell.state("run").closed
        assert ended or code == (-signal.SIGKILL if name == "driver" else RESUMABLE)

    return fault


def hung(text: str, seconds: float) -> Fault:
    """What has ``text`` in its command line stops for so long, and goes on."""

    def fault(shell: Shell, driver: subprocess.Popen[str]) -> None:
        stopped = wait_for_processes(shell, text)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(seconds if number == signal.SIGSTOP else 0)

    return fault


def told_to_end(shell: Shell, driver: subprocess.Popen[str]) -> None:
    """As ``timeout``, systemd and Slurm do: all of the process group."""
    os.killpg(driver.pid, signal.SIGTERM)
    assert driver.wait(60) == RESUMABLE


def zeroed_checkpoint(shell: Shell, driver: subprocess.Popen[str]) -> None:
    """The newest tensors of every trial become zeros between two sessions."""
    told_to_end(shell, driver)
    files = list((shell.folder("run") / "checkpoints").glob("*/*/*/*.safetensors"))
    assert files
    for file in files:
        save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file)


def black_store(shell: Shell, driver: subprocess.Popen[str]) -> None:
    """A part of the prepared images becomes black between two sessions."""
    told_to_end(shell, driver)
    files = list(Path(shell.env["ORCHESTRATOR_DATA"]).glob("*/train.arrow"))
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 5000] = bytes(5000)
        file.write_bytes(content)


def torn_record(shell: Shell, driver: subprocess.Popen[str]) -> None:
    """The last record is cut in the middle, as by a machine that lost its power."""
    told_to_end(shell, driver)
    ledger = shell.folder("run") / FILE_NAME
    os.truncate(ledger, ledger.stat().st_size - 20)


FAULTS: dict[str, Fault] = {
    **{
        f"kill -9 of the {name}": killed(name)
        for name in ("worker", "dispatcher", "thin trial", "controller", "mirror")
    },
    **{f"kill -9 of the {name}": lost_with(name) for name in ("raylet", "GCS", "driver")},
    "kill -9 of worker and dispatcher at once": killed("worker", "dispatcher"),
    "kill -9 of controller and worker at once": killed("controller", "worker"),
    "SIGTERM to the process group": told_to_end,
    **{
        f"the {name} hangs for {seconds} s": hung(PARTS[name], seconds)
        for seconds in HANGS_S
        for name in ("worker", "dispatcher", "controller", "driver")
    },
    f"the machine sleeps for {SLEEP_S} s": hung("", SLEEP_S),
    "checkpoints of zeros": zeroed_checkpoint,
    "black images in the store": black_store,
    "a torn last record": torn_record,
}
# While controller or driver hang, and until Ray is missed, workers go on to the end: after these
# there may be nothing left.
TABLE: dict[str, tuple[str, ...]] = {
    "processes are killed, then the driver hangs": (
        *(f"kill -9 of the {name}" for name in ("worker", "dispatcher", "thin trial")),
        "kill -9 of the controller",
        "kill -9 of the mirror",
        "kill -9 of worker and dispatcher at once",
        "kill -9 of controller and worker at once",
        "the driver hangs for 20 s",
    ),
    "processes hang": (
        f"the machine sleeps for {SLEEP_S} s",
        "the worker hangs for 20 s",
        "the dispatcher hangs for 20 s",
        "the controller hangs for 20 s",
    ),
    "a record is torn, then Ray is killed": (
        "a torn last record",
        "kill -9 of the GCS",
    ),
    "the driver is killed, then files are damaged, then Ray is killed": (
        "kill -9 of the driver",
        "checkpoints of zeros",
        "black images in the store",
        "kill -9 of the raylet",
    ),
}
if len(SEEDS) > 1:
    TABLE |= {name: (name,) for name in FAULTS}
TABLE["nothing, where sockets have long paths and files the names of libraries"] = ()


@pytest.fixture
def own_pixels(shell: Shell, tmp_path: Path) -> Shell:
    """A store that may be damaged."""
    shell.env["ORCHESTRATOR_DATA"] = str(tmp_path / "pixels")
    return shell


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of what the sweep comes to, which the first row to end writes, whatever process it
    runs in; the row where nothing happens is one of those compared with it."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "calm.json"


def expected_outcome(file: Path, outcome: dict[str, object]) -> dict[str, object]:
    """What ``file`` holds; ``outcome`` where there was none."""
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            file.write_text(json.dumps(outcome))
        expected: dict[str, object] = json.loads(file.read_text())
        return expected


@pytest.mark.ray
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("row", TABLE)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    row: str, seed: int, own_pixels: Shell, calm: Path
) -> None:
    shell = own_pixels
    if not TABLE[row]:
        long_tmpdir(shell)
        files_named_as_libraries(shell)
    driver = shell.start(*SWEEP)
    for number, name in enumerate(TABLE[row]):
        wait_for_epochs(shell, driver, name, more=1 + (0 if number else seed % 5))
        FAULTS[name](shell, driver)
        if driver.poll() in (RESUMABLE, -signal.SIGKILL):
            refuse_tracebacks(RESUMABLE, *driver.communicate(timeout=240))
            driver = shell.start(*SWEEP)
            if name != TABLE[row][-1]:
                wait_for_epochs(shell, driver, f"the command after {name}", more=0)
    out, err = driver.communicate(timeout=240)
    refuse_tracebacks(driver.returncode, out, err)
    code, commands = driver.returncode, 1
    while code == RESUMABLE and commands < MAX_COMMANDS:
        code, out, err = shell(*SWEEP)
        refuse_tracebacks(code, out, err)
        commands += 1
    assert code == 0, err
    assert TABLE[row] or "MLflow" not in err  # which would say that it is behind
    state = shell.state("run")
    assert len(state.trials) == 2
    assert {trial.status for trial in state.trials.values()} == {"finished"}
    assert shell.reported_twice("run") == []
    outcome = {"trials": outcome_of(state), "winner": winners(state)["resnet"].trial}
    assert json.loads(json.dumps(outcome)) == expected_outcome(calm, outcome)
    assert wait_until(lambda: not left_over(shell), patience_s=60, poll_s=0.5), left_over(shell)


def wait_for_epochs(shell: Shell, driver: subprocess.Popen[str], before: str, *, more: int) -> None:
    """Until the session has begun and there are so many more epochs than now; fails where the
    driver ends first, naming what it was to wait for ``before``."""
    epochs_now, sessions_now = epochs(shell.state("run")), sessions(shell)

    def gone_on() -> bool:
        assert driver.poll() is None, f"{before}: the run had ended: {driver.communicate()}"
        begun = more > 0 or sessions(shell) > sessions_now
        return begun and epochs(shell.state("run")) >= epochs_now + more

    assert wait_until(gone_on, patience_s=PATIENCE_S, poll_s=0.1), f"{before}: nothing goes on"


def sessions(shell: Shell) -> int:
    return sum(record["event"] == "resumed" for record in shell.records("run"))


def left_over(shell: Shell) -> list[str]:
    """Kinds of processes of a run that are there although it has ended."""
    return [name for name, text in PARTS.items() if shell.processes(text)]


@pytest.mark.ray
def test_images_that_change_between_two_sessions_stop_the_run_before_it_begins(
    own_pixels: Shell,
) -> None:
    shell, pictures = own_pixels, own_pixels.cwd / "pictures"
    for index in range(80):
        shade = np.full((32, 32, 3), 40 + 150 * (index % 2) + index % 40, np.uint8)
        (pictures / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(shade).save(pictures / "ab"[index % 2] / f"{index}.png")
    sweep = ("sweep", "resnet", "--name", "run", "--dataset", "pictures", "--trials", "2")
    sweep += ("--max-epochs", "6", "--no-measure", "--set", "resources.max_slots=1")
    driver = shell.start(*sweep)
    shell.wait_for("run", lambda state: epochs(state) > 0)
    told_to_end(shell, driver)
    run = shell.folder("run")
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    ledger = (run / FILE_NAME).read_bytes()
    assert before

    one_more = pictures / "a" / "one more.png"
    shutil.copy(pictures / "a" / "0.png", one_more)
    code, out, err = shell(*sweep)
    refuse_tracebacks(code, out, err)
    assert code == 2, err
    assert "have changed since 'run' began" in err
    assert (run / FILE_NAME).read_bytes() == ledger
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before

    one_more.unlink()
    code, out, err = shell(*sweep)
    refuse_tracebacks(code, out, err)
    assert code == 0, err


# Before a run: the environment and what is found there.

Setting = Callable[[Shell], None]


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections, as a kernel does for whoever listens, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def no_home(shell: Shell) -> None:
    del shell.env["HOME"]


def home_for_readers(shell: Shell) -> None:
    shell.env["HOME"] = "/proc/1"


def long_tmpdir(shell: Shell) -> None:
    folder = shell.cwd / ("t" * 90)
    folder.mkdir()
    shell.env["TMPDIR"] = str(folder)


def few_letters(shell: Shell) -> None:
    shell.env["PYTHONIOENCODING"] = "latin-1"


def files_named_as_libraries(shell: Shell) -> None:
    for name in ("mlflow.py", "ray.py", "torch.py"):
        (shell.cwd / name).write_text("raise SystemExit('this is not the library')\n")


def damaged_ledger(shell: Shell) -> None:
    folder = shell.folder("damaged")
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_text('{"time": 1.0, "event": "created"}\nhalf of a rec\n')


PLAN = ("plan", "resnet", "--trials", "1", "--no-measure")
SETTINGS: dict[str, tuple[Setting, tuple[str, ...], tuple[int, ...]]] = {
    "no HOME": (no_home, PLAN, (0,)),
    "a HOME that cannot be written": (home_for_readers, PLAN, (0,)),
    "a TMPDIR of 90 letters": (long_tmpdir, PLAN, (0,)),
    "a terminal of few letters": (few_letters, PLAN, (0,)),
    "files with the names of libraries": (files_named_as_libraries, PLAN, (0,)),
    "a damaged ledger beside others": (damaged_ledger, ("status",), (0, 2)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_in_any_environment_a_command_works_or_says_in_a_line_why_not(
    name: str, shell: Shell
) -> None:
    change, command, codes = SETTINGS[name]
    change(shell)
    code, out, err = shell(*command)
    refuse_tracebacks(code, out, err)
    assert code in codes, err


def test_a_cluster_that_never_answers_is_refused_within_seconds(shell: Shell) -> None:
    with silent_server() as address:
        shell.env["RAY_ADDRESS"] = address
        code, out, err = shell("sweep", "resnet", "--trials", "1")
    refuse_tracebacks(code, out, err)
    assert code == 2
    assert f"no Ray answers at '{address}'" in err


def test_a_driver_that_is_not_installed_is_named_without_the_password(shell: Shell) -> None:
    uri = "postgresql://ann:canary-7f3a@127.0.0.1:1/mlflow"
    code, out, err = shell("sweep", "resnet", "--trials", "1", "--tracking-uri", uri)
    refuse_tracebacks(code, out, err)
    assert code == 2
    assert "canary-7f3a" not in out + err


def test_a_database_of_an_older_mlflow_is_named_before_the_run(shell: Shell) -> None:
    file = shell.cwd / "runs" / "mlflow.db"
    file.parent.mkdir()
    create = "import sys; from mlflow import MlflowClient as C; C(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", create, f"sqlite:///{file}"], env=shell.env, check=True)
    with sqlite3.connect(file) as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    code, out, err = shell("sweep", "resnet", "--trials", "1")
    refuse_tracebacks(code, out, err)
    assert code == 2
    assert "mlflow db upgrade" in err
    assert not shell.folder("resnet-digits").exists()


def test_mlflow_ends_with_the_command_that_serves_it(shell: Shell) -> None:
    port = free_port()
    (shell.cwd / "runs").mkdir()
    uri = f"sqlite:///{shell.cwd}/runs/mlflow.db"
    create = "import sys; from mlflow import MlflowClient as C; C(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", create, uri], env=shell.env, check=True)
    ui = shell.start("ui", "--port", str(port))
    address = f"http://127.0.0.1:{port}"
    assert wait_until(lambda: not store.check(address, timeout_s=1), patience_s=120, poll_s=0.5)
    ui.send_signal(signal.SIGTERM)
    out, err = ui.communicate(timeout=60)
    refuse_tracebacks(ui.returncode, out, err)
    assert ui.returncode == RESUMABLE
    assert err.endswith("MLflow has ended\n")
    assert out == f"{address}\n"  # there is no run to compare, and MLflow's own lines are on stderr
    with socket.socket() as free:  # fails while anybody listens there
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def test_cores_that_are_not_ours_are_not_promised(shell: Shell) -> None:
    """As under ``taskset``, and in a container of a share of the machine's cores."""
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "orchestrator", "doctor", "--local", "--json"]
    ended = subprocess.run(
        command,
        cwd=shell.cwd,
        env=shell.env,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    refuse_tracebacks(ended.returncode, ended.stdout, ended.stderr)
    assert json.loads(ended.stdout)["cpus"] == 1


@pytest.mark.ray
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs to mount a disk")
def test_a_full_disk_stops_the_run_and_fails_no_trial(shell: Shell, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(small, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        code, out, err = shell(*SWEEP, "--storage", str(disk))
        refuse_tracebacks(code, out, err)
        assert code == RESUMABLE, err
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        code, out, err = shell(*SWEEP, "--storage", str(disk))
        refuse_tracebacks(code, out, err)
        assert code == 0, err
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
