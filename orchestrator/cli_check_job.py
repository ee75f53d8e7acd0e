"""What can be checked here of a run that is to go on elsewhere, as a job: no folder of the cluster
is looked for on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.cli_check import backbone_mistakes
from orchestrator.spec import NAMED_DATASETS, RunSpec
from trainables.assignment import DataSpec
from trainables.errors import raise_if_any
from trainables.storage import is_remote


def check_job(spec: RunSpec) -> None:
    """Raise ``UserError`` with every mistake that shows before the job is submitted."""
    found = spec.mistakes()
    for sweep in spec.sweeps:
        found += backbone_mistakes(sweep) + _data_mistakes(sweep.data)
    found += [_relative(option, path) for option, path in _paths(spec) if not _absolute(path)]
    found += _tracking_mistakes(spec.tracking_uri)
    if not found and not is_remote(spec.storage) and spec.folder.is_dir():
        from orchestrator import session

        found = session.name_mistakes(spec)
    raise_if_any(dict.fromkeys(found))


def _paths(spec: RunSpec) -> Iterator[tuple[str, str]]:
    if not is_remote(spec.storage):
        yield "--storage ", spec.storage
    for sweep in spec.sweeps:
        data, weights = sweep.data, sweep.backbone.weights
        if data.source not in NAMED_DATASETS and Path(data.source).exists():
            yield "--dataset ", data.source
        if data.archive is not None:
            yield "--set data.archive=", data.archive
        if data.folder is not None:
            yield "--set data.folder=", data.folder
        if weights not in ("hub", "none"):
            yield "--weights ", weights


def _absolute(path: str) -> bool:
    return Path(path).expanduser().is_absolute()


def _relative(option: str, path: str) -> str:
    fix = f"{option}{Path(path).absolute()} where the head is this machine, else a path there"
    if option == "--storage ":
        fix += ", or --storage s3://BUCKET/runs"
    return (
        f"a job runs in a copy of its folder, so a path must be absolute; got {option}{path}. "
        f"Fix: {fix}"
    )


def _data_mistakes(data: DataSpec) -> list[str]:
    """Of a source with a name, of one that is here too, and of one that is a slip of the pen."""
    from trainables.data import check_source

    elsewhere = [
        path
        for path in (data.archive, data.source if data.source not in NAMED_DATASETS else None)
        if path is not None and _absolute(path) and not Path(path).expanduser().exists()
    ]
    return [] if elsewhere else check_source(data)


def _tracking_mistakes(uri: str | None) -> list[str]:
    from orchestrator.tracking_store import SERVER_SCHEMES, check

    if uri is None or uri.partition(":")[0] in SERVER_SCHEMES:
        return []
    scheme, _, path = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite":
        return check(uri)
    return [] if _absolute(path) else [_relative("--tracking-uri sqlite:///", path)]
