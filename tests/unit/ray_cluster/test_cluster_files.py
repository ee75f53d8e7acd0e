"""The files under cluster/: valid by the schemas of their readers, one version, live commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.unit.command_lines import calls, check_ours, parse, shell_blocks

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text(encoding="utf-8")
BOOT_MINUTES = 6  # of a GPU machine: what the files assume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's and MLflow's CLI


def ray_cli() -> click.Command:
    from ray.scripts.scripts import cli

    return cli


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def ray_cluster(name: str) -> dict[str, Any]:
    (document,) = documents(name)
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec", spec)


# Versions: one place says them, the files repeat it.


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    (python,) = re.findall(r"Python (\d+\.\d+)", lines[0])
    return {**pins, "python": python}


def outdated(pins: Mapping[str, str]) -> list[str]:
    """Every version named under cluster/ that is not the pinned one; a file that names none."""
    found = []
    python = "py" + pins["python"].replace(".", "")
    ours = f"backbone-tournament:ray-{pins['ray']}-{python}"
    rayproject = f"rayproject/ray:{pins['ray']}-{python}-cpu"
    mlflow = f"mlflow/mlflow:v{pins['mlflow']}-full"
    for path in sorted(CLUSTER.iterdir()):
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?:backbone-tournament|rayproject/ray|mlflow/mlflow):[\w.-]+", text)
        named += re.findall(r"rayVersion: .*", re.sub(r" +#.*", "", text))
        right = {ours, rayproject, mlflow, f'rayVersion: "{pins["ray"]}"'}
        found += [f"{path.name}: {one}" for one in named if one not in right]
        if path.name in ("aws.yaml", "gcp.yaml", "mlflow.yaml", "Dockerfile") and not named:
            found.append(f"{path.name}: no version")
    return found


def test_versions_are_those_of_the_constraints() -> None:
    assert outdated(pinned()) == []


@pytest.mark.parametrize(
    ("library", "version", "files"),
    [
        (
            "ray",
            "2.61.0",
            "Dockerfile README.md aws.yaml gcp.yaml kuberay-cluster.yaml kuberay-job.yaml",
        ),
        (
            "python",
            "3.12",
            "Dockerfile README.md aws.yaml gcp.yaml kuberay-cluster.yaml kuberay-job.yaml",
        ),
        ("mlflow", "3.18.0", "mlflow.yaml"),
    ],
)
def test_another_version_in_the_constraints_is_noticed(
    library: str, version: str, files: str
) -> None:
    found = outdated({**pinned(), library: version})
    assert {line.partition(":")[0] for line in found} == set(files.split())


# Kubernetes.


def test_the_job_brings_the_cluster_of_the_other_file() -> None:
    assert ray_cluster("kuberay-job.yaml") == ray_cluster("kuberay-cluster.yaml")


def test_the_kuberay_cluster_keeps_drivers_and_workers_apart() -> None:
    spec = ray_cluster("kuberay-cluster.yaml")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 2 * 60 * BOOT_MINUTES
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    pods = [head["template"]["spec"]]
    for workers in spec["workerGroupSpecs"]:
        assert workers["minReplicas"] == 0 < workers["maxReplicas"]
        pod = workers["template"]["spec"]
        assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) > 0
        pods.append(pod)
    assert len(pods) > 1
    assert {pod["restartPolicy"] for pod in pods} == {"Never"}
    assert "nvidia.com/gpu" not in pods[0]["containers"][0]["resources"]["limits"]


def test_the_job_goes_on_by_name() -> None:
    (job,) = documents("kuberay-job.yaml")
    (arguments,) = calls(job["spec"]["entrypoint"], "orchestrator")
    check_ours(arguments)
    params = parse_ours(arguments)
    assert params["name"]
    assert params["storage"].startswith("s3://")
    assert params["gpus_per_worker"] > 0
    assert job["spec"]["backoffLimit"] > 0


def parse_ours(arguments: list[str]) -> dict[str, Any]:
    from orchestrator.cli.main import group

    return parse(group, arguments).params


def secrets(node: Any) -> Iterator[tuple[str, str | None]]:
    """(name, key) of every secret that is referred to."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("secretRef", "secretKeyRef"):
                yield value["name"], value.get("key")
            yield from secrets(value)
    elif isinstance(node, list):
        for value in node:
            yield from secrets(value)


def test_every_secret_is_made_by_a_command_of_the_readme() -> None:
    made: dict[str, str] = {}
    for words in calls(shell_blocks(README), "kubectl"):
        if words[:3] == ["create", "secret", "generic"]:
            made[words[3]] = " ".join(words[4:])
    names = ("kuberay-cluster.yaml", "kuberay-job.yaml", "mlflow.yaml")
    wanted = [one for name in names for one in secrets(documents(name))]
    assert {name for name, _ in wanted} == set(made)
    assert set(made) == {"object-storage", "mlflow-login", "mlflow-server"}
    whole = {"object-storage": "AWS_ACCESS_KEY_ID", "mlflow-login": "MLFLOW_TRACKING_PASSWORD"}
    for name, key in wanted:
        assert f"--from-literal={key or whole[name]}=" in made[name]


def test_mlflow_answers_to_the_name_that_runs_call_it_by() -> None:
    from mlflow.cli import cli as mlflow_cli
    from mlflow.server.security_utils import is_allowed_host_header

    found = {(one["kind"], one["metadata"]["name"]): one for one in documents("mlflow.yaml")}
    server = found["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"][0]
    params = parse(mlflow_cli, server["args"][1:]).params
    allowed = params["allowed_hosts"].split(",")

    (job,) = documents("kuberay-job.yaml")
    (arguments,) = calls(job["spec"]["entrypoint"], "orchestrator")
    address = urlparse(parse_ours(arguments)["tracking_uri"])
    assert is_allowed_host_header(allowed, address.netloc)
    assert is_allowed_host_header(allowed, "localhost:5000")
    assert not is_allowed_host_header(allowed, "elsewhere:5000")
    service = found["Service", address.hostname]["spec"]
    assert (service["ports"][0]["port"], params["port"]) == (address.port, address.port)
    assert (
        service["selector"]
        == found["Deployment", "mlflow"]["spec"]["template"]["metadata"]["labels"]
    )

    environment = {one["name"]: one for one in server["env"]}
    store = environment["MLFLOW_BACKEND_STORE_URI"]["value"]
    assert store.startswith("postgresql://")
    assert ("Service", urlparse(store).hostname) in found
    assert params["artifacts_destination"].startswith("s3://")


# Virtual machines, and the laptop's.


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "local-autoscaling.yaml"])
def test_launcher_files_are_valid_by_rays_schema(name: str) -> None:
    (config,) = documents(name)
    prepared = prepare_config(deepcopy(config))
    validate_config(prepared)
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    workers = [
        one for key, one in prepared["available_node_types"].items() if one is not head and key
    ]
    assert workers
    assert all(one["min_workers"] == 0 < one["max_workers"] for one in workers)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "idle_timeout": 15})


def is_spot(node_config: Mapping[str, Any]) -> bool:
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node_config.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_clouds_have_safe_heads_and_spot_workers_behind_a_token(name: str) -> None:
    (config,) = documents(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert not is_spot(head["node_config"])
    assert len(types) > 1
    for workers in types.values():
        assert is_spot(workers["node_config"])
        assert workers["resources"]["GPU"] > 0
    assert config["idle_timeout_minutes"] > 2 * BOOT_MINUTES
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"

    started = [
        parse(ray_cli(), words).params for words in ray_calls(config["head_start_ray_commands"])
    ]
    (params,) = [one for one in started if "head" in one]
    assert params["head"]
    assert params["dashboard_host"] == "127.0.0.1"
    assert params["autoscaling_config"]
    joined = [
        parse(ray_cli(), words).params for words in ray_calls(config["worker_start_ray_commands"])
    ]
    assert [one["address"] for one in joined if "address" in one] == ["$RAY_HEAD_IP:6379"]


def ray_calls(commands: list[str]) -> list[list[str]]:
    return [words for command in commands for words in calls(command, "ray")]


# The image.


def test_the_image_holds_the_dependencies_and_the_code() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    assert "--require-hashes -r requirements-hashed.txt" in text
    # The build backend is one of them: nothing is fetched without a hash.
    assert "--no-deps --no-build-isolation ." in text
    hashed = (ROOT / "requirements-hashed.txt").read_text(encoding="utf-8")
    assert re.search(r"^setuptools==", hashed, re.M)

    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    copied = [
        word for line in re.findall(r"^COPY --\S+ (.*)", text, re.M) for word in line.split()[:-1]
    ]
    assert {"pyproject.toml", "orchestrator", "trainables"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    for line in re.findall(r"(?:RUN|&&) +(python -m orchestrator .*)", text):
        (arguments,) = calls(line, "orchestrator")
        check_ours(arguments)


# The document.


@pytest.mark.parametrize(
    "arguments", list(calls(shell_blocks(README), "orchestrator")), ids=" ".join
)
def test_every_command_of_the_readme_parses(arguments: list[str]) -> None:
    check_ours(arguments)


@pytest.mark.parametrize("arguments", list(calls(shell_blocks(README), "ray")), ids=" ".join)
def test_every_ray_command_of_the_readme_parses(arguments: list[str]) -> None:
    parse(ray_cli(), arguments)


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises(click.ClickException):
        check_ours(["sweep", "vit", "--worker-count", "2"])
    with pytest.raises(click.ClickException):
        parse(ray_cli(), ["start", "--head", "--dashboard", "127.0.0.1"])


def test_the_readme_names_every_file_and_no_other() -> None:
    files = {path.name for path in CLUSTER.iterdir()} - {"README.md", "Dockerfile.dockerignore"}
    named = set(re.findall(r"`(?:cluster/)?([\w-]+\.(?:yaml|sh)|Dockerfile)`", README))
    assert named == files
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", README)) <= headings
    assert len(list(calls(shell_blocks(README), "orchestrator"))) > 5


# Slurm: the script is run by bash, with commands that only tell how they were called.

RECORDER = """#!{python}
import json, os, sys, time, signal
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([name, *arguments]) + "\\n")
if name == "srun":
    while arguments[0].startswith("--"):
        arguments.pop(0)
    os.execvp(arguments[0], arguments)
elif name == "scontrol" and arguments[0] == "show":
    print("one\\ntwo\\nthree")
elif name == "hostname":
    print("10.0.0.1 fd00::1")
elif name == "python" and arguments[:2] == ["-m", "orchestrator"] and os.environ.get("SLOW"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    open({log!r} + ".running", "w").close()
    time.sleep(60)
"""


def slurm(tmp_path: Path, **environment: str) -> tuple[subprocess.Popen[bytes], Path]:
    """The batch script, started as Slurm does on the first of three nodes; where its calls go."""
    log, commands = tmp_path / "calls", tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    recorder = commands / "recorder"
    recorder.write_text(RECORDER.format(python=sys.executable, log=str(log)))
    recorder.chmod(0o755)
    for name in ("srun", "scontrol", "hostname", "ray", "python"):
        (commands / name).symlink_to(recorder)
    script = CLUSTER / "slurm.sh"
    (job_name,) = re.findall(r"^#SBATCH --job-name=(.*)$", script.read_text(), re.M)
    given = {
        "SLURM_JOB_NAME": job_name,
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    process = subprocess.Popen(["bash", script], env={**os.environ, **given, **environment})
    return process, log


def recorded(log: Path, name: str) -> list[list[str]]:
    return [call[1:] for call in map(json.loads, log.read_text().splitlines()) if call[0] == name]


def test_slurm_makes_a_cluster_and_runs_one_sweep(tmp_path: Path) -> None:
    process, log = slurm(tmp_path)
    assert process.wait(30) == 0
    deadline = time.monotonic() + 30
    while sum(words[0] == "start" for words in recorded(log, "ray")) < 2:
        assert time.monotonic() < deadline  # srun starts them in the background
        time.sleep(0.05)
    started = [
        parse(ray_cli(), words).params for words in recorded(log, "ray") if words[0] == "start"
    ]
    heads = [one for one in started if one["head"]]
    assert [one["node_ip_address"] for one in heads] == ["10.0.0.1"]
    assert heads[0]["dashboard_host"] == "127.0.0.1"
    addresses = {one["address"] for one in started if not one["head"]}
    assert addresses == {f"10.0.0.1:{heads[0]['port']}"}
    assert {one["num_cpus"] for one in started} == {8}
    spread = [words for words in recorded(log, "srun") if "--nodes=2" in words]
    assert ["--ntasks=2" in words and "--exclude=one" in words for words in spread] == [True]
    (sweep,) = [words[2:] for words in recorded(log, "python") if words[:1] == ["-m"]]
    check_ours(sweep)
    assert parse_ours(sweep)["storage"] == f"{tmp_path}/runs"
    assert not [words for words in recorded(log, "scontrol") if words[0] == "requeue"]


def test_slurm_queues_again_when_its_time_is_over(tmp_path: Path) -> None:
    process, log = slurm(tmp_path, SLOW="1")
    deadline = time.monotonic() + 30
    while not log.with_name("calls.running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert ["requeue", "4711"] in recorded(log, "scontrol")


def test_shell_scripts_parse() -> None:
    scripts = list(CLUSTER.glob("*.sh"))
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
