"""The files for Kubernetes: valid by its schemas, no container with more rights than it needs, and
no way in but the ones that are meant."""

from __future__ import annotations

import configparser
import functools
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"
README = (CLUSTER / "README.md").read_text(encoding="utf-8")
FILES = ("access.yaml", "mlflow.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml")
KUBERNETES = "1.31"  # any from here on: what the files use is older
SCRATCH = {"emptyDir"}
RAY_USER = (1000, 100)  # of rayproject's images


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, document)
        for name in FILES
        for document in yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8"))
    ]


DOCUMENTS = documents()


@dataclass(frozen=True)
class Pod:
    """A pod's template; ``injected`` are the containers that the operator puts into it."""

    name: str
    template: Mapping[str, Any]
    injected: tuple[Mapping[str, Any], ...] = ()

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.template["spec"]

    @property
    def labels(self) -> Mapping[str, str]:
        return self.template["metadata"]["labels"]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return [*self.spec["containers"], *self.spec.get("initContainers", ()), *self.injected]


def pods_of(name: str, document: Mapping[str, Any]) -> Iterator[Pod]:
    spec = document.get("spec", {})
    if document["kind"] in ("RayCluster", "RayJob"):
        cluster = spec.get("rayClusterSpec", spec)
        autoscaler = {"name": "autoscaler", **cluster["autoscalerOptions"]}
        yield Pod(f"{name}-head", cluster["headGroupSpec"]["template"], (autoscaler,))
        for group in cluster["workerGroupSpecs"]:
            yield Pod(f"{name}-{group['groupName']}", group["template"])
    elif "template" in spec:
        yield Pod(f"{name}-{document['metadata']['name']}", spec["template"])


PODS = [pod for name, document in DOCUMENTS for pod in pods_of(name, document)]


def closed(schema: Any) -> Any:
    """The CRD's schema as an API server applies it: a field that it does not know is a mistake."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    known = "properties" in schema and "additionalProperties" not in schema
    if known and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


@functools.cache
def validator_of(kind: str) -> Any:
    """Of the operator's own CRD."""
    text = (SCHEMAS / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (v1,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    return jsonschema.Draft202012Validator(closed(v1["schema"]["openAPIV3Schema"]))


@pytest.mark.shared
@pytest.mark.skipif(not SCHEMAS.exists(), reason=f"no {SCHEMAS}")
@pytest.mark.parametrize(
    ("name", "misspelt"),
    [
        ("kuberay-cluster.yaml", ("spec", "autoscalerOptions", "idleTimeoutMinutes")),
        ("kuberay-job.yaml", ("spec", "rayClusterSpec", "autoscaling")),
    ],
)
def test_kuberay_files_are_valid_by_the_operators_schema(
    name: str, misspelt: tuple[str, ...]
) -> None:
    (document,) = [document for file, document in DOCUMENTS if file == name]
    assert document["apiVersion"] == "ray.io/v1"
    validator = validator_of(document["kind"])
    assert [error.message for error in validator.iter_errors(document)] == []

    wrong = deepcopy(document)
    inside = wrong
    for key in misspelt[:-1]:
        inside = inside[key]
    inside[misspelt[-1]] = 15
    assert [misspelt[-1] in error.message for error in validator.iter_errors(wrong)] == [True]


OF_KUBERNETES = [pair for pair in DOCUMENTS if not pair[1]["apiVersion"].startswith("ray.io/")]


@pytest.mark.parametrize(
    ("name", "document"),
    OF_KUBERNETES,
    ids=[f"{document['kind']}-{document['metadata']['name']}" for _, document in OF_KUBERNETES],
)
def test_every_other_document_is_valid_by_the_schema_of_kubernetes(
    name: str, document: dict[str, Any]
) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    misspelt = deepcopy(document)
    misspelt.setdefault("spec", misspelt)["misspelt"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, KUBERNETES, strict=True)


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
def test_a_pods_template_is_valid_by_the_schema_of_kubernetes(pod: Pod) -> None:
    """A CRD knows pods only in part: the pods that it makes are held against the real schema."""
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod.spec}
    kubernetes_validate.validate(made, KUBERNETES, strict=True)


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
def test_no_pod_runs_as_root_or_shares_its_node(pod: Pod) -> None:
    user = pod.spec["securityContext"]
    assert user["runAsNonRoot"] is True
    assert user["runAsUser"] > 0 < user["runAsGroup"]
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    for shared in ("hostNetwork", "hostPID", "hostIPC"):
        assert not pod.spec.get(shared)
    assert all("hostPath" not in volume for volume in pod.spec.get("volumes", ()))


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
def test_no_container_has_rights_or_writes_to_its_image(pod: Pod) -> None:
    volumes = {volume["name"]: set(volume) - {"name"} for volume in pod.spec.get("volumes", ())}
    for container in pod.containers:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context.get("privileged")
        assert not {"runAsUser", "runAsNonRoot", "seccompProfile"} & set(context)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts["/tmp"]] == SCRATCH


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
def test_only_the_head_holds_a_token_for_kubernetes(pod: Pod) -> None:
    is_head = bool(pod.injected)  # its autoscaler asks for pods
    assert pod.spec.get("automountServiceAccountToken", True) is is_head
    accounts = {
        document["metadata"]["name"]: document
        for _, document in DOCUMENTS
        if document["kind"] == "ServiceAccount"
    }
    if "serviceAccountName" in pod.spec:
        account = accounts[pod.spec["serviceAccountName"]]
        assert account.get("automountServiceAccountToken", True) is is_head
    uses_bucket = any("envFrom" in container for container in pod.spec["containers"])
    assert uses_bucket == ("serviceAccountName" in pod.spec)
    if uses_bucket:
        clouds = {"eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account"}
        assert set(account["metadata"]["annotations"]) == clouds


# Who reaches whom.


def policies() -> list[dict[str, Any]]:
    return [document for _, document in DOCUMENTS if document["kind"] == "NetworkPolicy"]


def fits(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return selector["matchLabels"].items() <= labels.items()


def rules_of(pod: Pod) -> list[dict[str, Any]]:
    specs = [policy["spec"] for policy in policies()]
    return [spec for spec in specs if fits(spec["podSelector"], pod.labels)]


def admitted(target: Pod, source: Mapping[str, str], port: int, *, abroad: bool = False) -> bool:
    """Whether a pod of these labels, of this namespace or ``abroad``, reaches ``target``."""
    rules = rules_of(target)
    if not any("Ingress" in rule["policyTypes"] for rule in rules):
        return True
    return any(
        fits(peer["podSelector"], source)
        and (not abroad or "namespaceSelector" in peer)
        and ("ports" not in way or port in [item["port"] for item in way["ports"]])
        for rule in rules
        for way in rule["ingress"]
        for peer in way["from"]
    )


def leaving(source: Pod, target: Pod, port: int) -> bool:
    """Whether ``source`` may connect to ``target``, by the rules for what goes out of it."""
    rules = rules_of(source)
    return any(
        any(fits(peer["podSelector"], target.labels) for peer in way.get("to", ()))
        and ("ports" not in way or port in [item["port"] for item in way["ports"]])
        for rule in rules
        for way in rule["egress"]
    )


def test_pods_are_reached_by_those_that_need_them_and_by_nobody_else() -> None:
    by_app: dict[str, Pod] = {pod.labels["app"]: pod for pod in PODS}
    ports = {"tournament": 6379, "mlflow": 5000, "mlflow-postgres": 5432}
    assert set(by_app) == set(ports)
    meant = {
        ("tournament", "tournament"),
        ("tournament", "mlflow"),
        ("mlflow", "mlflow-postgres"),
    }
    for source in by_app:
        for target in by_app:
            both = [
                admitted(by_app[target], by_app[source].labels, ports[target]),
                leaving(by_app[source], by_app[target], ports[target]),
            ]
            assert both == [(source, target) in meant] * 2, (source, target)
    stranger, operator = {"app": "stranger"}, {"app.kubernetes.io/name": "kuberay-operator"}
    for app, pod in by_app.items():
        for port in (*ports.values(), 8265):
            assert not admitted(pod, stranger, port, abroad=True)
            is_dashboard = (app, port) == ("tournament", 8265)
            assert admitted(pod, operator, port, abroad=True) == is_dashboard


def test_no_pod_asks_a_node_for_its_own_credentials() -> None:
    """Clouds hand them out at port 80 of a link-local address."""
    for policy in policies():
        assert {"Ingress", "Egress"} == set(policy["spec"]["policyTypes"])
        for way in policy["spec"]["egress"]:
            assert "to" in way or all(item["port"] in (53, 443, 6443) for item in way["ports"])


# MLflow's login.


def test_mlflow_asks_for_the_login_that_runs_have() -> None:
    from mlflow import environment_variables

    kinds = {(d["kind"], d["metadata"]["name"]): d for _, d in DOCUMENTS if "metadata" in d}
    (server,) = kinds["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    assert "--app-name=basic-auth" in server["args"]
    environment = {item["name"]: item for item in server["env"]}
    for name, key in (
        ("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_TRACKING_USERNAME"),
        ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_TRACKING_PASSWORD"),
    ):
        asked = environment[name]["valueFrom"]["secretKeyRef"]
        assert asked == {"name": "mlflow-login", "key": key}
    for pod in PODS:
        if pod.labels["app"] == "tournament":
            given = [item["secretRef"]["name"] for item in pod.spec["containers"][0]["envFrom"]]
            assert "mlflow-login" in given
            assert "mlflow-server" not in given

    settings = configparser.ConfigParser()
    settings.read_string(kinds["ConfigMap", "mlflow-auth"]["data"]["basic_auth.ini"])
    assert settings["mlflow"]["default_permission"] == "READ"
    place = environment["MLFLOW_AUTH_CONFIG_PATH"]["value"]
    assert place == "/etc/mlflow/basic_auth.ini"
    assert environment["MLFLOW_BACKEND_STORE_URI"]["value"] == settings["mlflow"]["database_uri"]
    for name in environment:
        if name.startswith("MLFLOW_") and name != "MLFLOW_BACKEND_STORE_URI":  # click's own name
            assert hasattr(environment_variables, name), name


def test_no_file_holds_a_password() -> None:
    for name in FILES:
        text = (CLUSTER / name).read_text(encoding="utf-8")
        assert re.findall(r"://[^/\s@]*:[^/\s@]+@", text) == []


def test_the_image_can_be_pinned_and_runs_as_the_user_that_the_files_name() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG BASE=\S+\nFROM \$\{BASE\}$", text, re.M)
    user, group = RAY_USER
    assert re.findall(r"^USER (.*)$", text, re.M)[-1] == f"{user}:{group}"
    for pod in PODS:
        if pod.labels["app"] == "tournament":
            context = pod.spec["securityContext"]
            assert (context["runAsUser"], context["runAsGroup"]) == RAY_USER
    assert "## Pinned images" in README
    assert "--build-arg BASE=rayproject/ray@sha256:" in README
