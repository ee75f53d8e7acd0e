"""Run folders for the compare tests, written through the real ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.compare.comparison import compare
from orchestrator.compare.runs import load
from orchestrator.compare.table import table_text
from orchestrator.ledger.events import FILE_NAME, Ledger
from orchestrator.spec.run import search_name
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.storage.trial_files import write_correct

SPACE = {
    "recipe.learning_rate": {"kind": "log", "low": 1e-4, "high": 1e-2},
    "recipe.weight_decay": {"kind": "uniform", "low": 0.0, "high": 0.2},
    "recipe.batch_size_per_worker": {"kind": "choice", "values": [16, 32, 64]},
}
MODELS = {"resnet": "test_resnet", "vit": "test_vit", "hybrid": "vit_tiny_r_s16_p8_224"}
DATASET = {
    "name": "digits", "class_names": [str(i) for i in range(10)], "height": 8, "width": 8,
    "channels": 3, "counts": {"train": 1438, "val": 180, "test": 179}, "content_hash": "c0ffee00",
    "mirror_safe": False, "skipped": 0,
}  # fmt: skip


def compared(*folders: Path) -> dict[str, Any]:
    """The compare JSON of runs, which is valid JSON."""
    made = compare([load(folder) for folder in folders]).as_dict()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    return made


def shown(*folders: Path) -> str:
    """The terminal's comparison of runs."""
    return table_text(compare([load(folder) for folder in folders]))


def opposite(metric: str, value: float) -> float:
    """An accuracy that is the lower, the better ``value`` is by ``metric``."""
    return value / (1 + value) if metric == "loss" else 1 - value


class RunFolder:
    """Writes one run's ledger, trial by trial."""

    def __init__(
        self,
        folder: Path,
        families: tuple[str, ...] = ("resnet", "vit"),
        *,
        dataset: dict[str, Any] = DATASET,
        max_epochs: int = 9,
        data: DataSpec = DataSpec(),  # noqa: B008 - frozen
        metric: str = "top1",
    ) -> None:
        self.folder, self.metric = folder, metric
        self.max_epochs, self.data = max_epochs, data
        self.ledger = Ledger(folder / FILE_NAME)
        self.counts = dict.fromkeys(families, 0)
        sweeps = [
            {
                "backbone": asdict(BackboneSpec(family=family)), "data": asdict(data),
                "recipe": Recipe().as_dict(), "space": SPACE, "trials": 8, "seed": 0,
                **({} if metric == "top1" else {"metric": metric}),
                "scheduler": {"kind": "asha", "max_epochs": max_epochs, "grace_epochs": 1,
                              "reduction_factor": 3},
                "resources": {"num_workers": 1},
            }
            for family in families
        ]  # fmt: skip
        header = {
            "schema": 1, "run": folder.name, "spec": {"name": folder.name, "sweeps": sweeps},
            "spec_hash": "5bec5bec5bec5bec", "code_version": "0.1.0",
            "environment": {"versions": {"torch": "2.15.0"}, "hardware": {"cpus": 2}},
            "datasets": dict.fromkeys(families, dataset),
            "geometry": {
                family: {"model": MODELS.get(family), "image_size": 32, "tokens": 64,
                         "stem": "small" if family == "resnet" else None, "adaptation": "upsampled",
                         "patch": None if family == "resnet" else 4, "warnings": []}
                for family in families
            },
        }  # fmt: skip
        self.ledger.append("created", detail=header)

    def submit(
        self,
        family: str,
        *,
        stage: str = "search",
        seed: int = 0,
        search: int = 1,
        winner: str | None = None,
        published: dict[str, Any] | None = None,
        **axes: Any,
    ) -> str:
        """A trial's recipe, queued; ``axes`` are recipe axes, ``published`` says where they come
        from."""
        index = self.counts[family]
        self.counts[family] += 1
        whose = search_name(family, search)
        trial = f"{whose}-{index:04d}" if stage == "search" else f"{whose}-{stage}-{index:04d}"
        assignment = Assignment(
            trial_id=trial, attempt=1, backbone=BackboneSpec(family=family),
            recipe=Recipe(**axes), data=self.data, seed=seed, epochs=self.max_epochs,
            metric=self.metric,
        )  # fmt: skip
        searched = {f"recipe.{name}": value for name, value in axes.items()}
        self.ledger.append(
            "submitted", trial=trial, family=family, stage=stage,
            search=search if search > 1 else None,
            detail={"assignment": assignment.as_dict(), "axes": searched}
            | ({"winner": winner} if winner else {})
            | ({"published": published} if published else {}),
        )  # fmt: skip
        return trial

    def trial(
        self,
        family: str,
        values: list[float | None],
        *,
        end: str | None = "finished",
        seconds: float = 2.0,
        flops: float = 1e9,
        workers: int = 1,
        reason: str | None = None,
        detail: dict[str, Any] | None = None,
        test: dict[str, float] | None = None,
        probes: dict[str, Any] | None = None,
        promoted: tuple[int, ...] = (),
        audited: int | None = None,
        **more: Any,
    ) -> str:
        """A trial that reports ``values`` epoch by epoch and ends as ``end`` (None: it runs on).

        Each epoch costs ``seconds`` of training, a tenth of that of evaluation, ``flops`` and
        100 images. A ``None`` value leaves the epoch's accuracy out of its report. In a run that is
        judged by another metric than top1 ``values`` are of that, and accuracy says the opposite.
        """
        trial = self.submit(family, **more)
        facts = {"model": MODELS.get(family, family), "num_workers": workers, "device": "cpu",
                 "params_m": 0.4, "tokens": 64, **(detail or {})}  # fmt: skip
        self.ledger.append("started", trial=trial, attempt=1, slot="slot-0", detail=facts)
        for epoch, value in enumerate(values, start=1):
            metrics = {"train_seconds": seconds, "eval_seconds": seconds / 10,
                       "images_seen": 100.0 * epoch, "flops": flops * epoch}  # fmt: skip
            if value is not None:
                metrics["val_top1"] = (
                    value if self.metric == "top1" else opposite(self.metric, value)
                )
                metrics[f"val_{self.metric}"] = value
            self.ledger.append(
                "reported", trial=trial, attempt=1, epoch=epoch, metrics=metrics,
                workers=workers if workers != 1 else None,
            )  # fmt: skip
            if epoch in promoted:
                self.ledger.append("promoted", trial=trial, rung=epoch, epoch=epoch)
            if epoch == audited:
                self.ledger.append("audited", trial=trial, rung=epoch, epoch=epoch, reason="low")
        if end == "pruned":
            reason = reason or f"val_top1 {values[-1]} below the cut-off 0.44 of 5 trials"
            self.ledger.append(
                "pruned", trial=trial, rung=len(values), epoch=len(values), reason=reason
            )
        elif end == "failed":
            self.ledger.append("failed", trial=trial, reason=reason or "diverged: loss is nan")
        elif end == "finished":
            outcome = None if test is None else {"test": test, "probes": probes or {}}
            self.ledger.append("finished", trial=trial, detail=outcome)
        return trial

    def final(
        self,
        family: str,
        correct: np.ndarray,
        *,
        seed: int,
        by_image: bool = True,
        groups: np.ndarray | None = None,
        **more: Any,
    ) -> str:
        """A finished final with its test accuracy, and correctness by image, bool (N,), with the
        group of each."""
        test = {"top1": float(correct.mean())}
        trial = self.trial(family, [0.5, 0.9], stage="final", seed=seed, test=test, **more)
        if by_image:
            path = self.folder / "finals" / trial / "test_correct.arrow"
            write_correct(path, correct, groups)
        return trial

    def close(self, event: str | None = "closed") -> Path:
        """The end of the run; the folder."""
        if event:
            self.ledger.append(event)
        self.ledger.close()
        return self.folder


def probes(patch: int | None, *, seed: int = 0) -> dict[str, Any]:
    """What the probes say of a finished model; a transformer's where ``patch`` is given."""
    draw = np.random.default_rng(seed)
    offsets = list(range(1 + (patch or 4)))
    falling = [1.0, *sorted(draw.uniform(0.7, 0.95, len(offsets) - 1).tolist(), reverse=True)]
    found = {
        "split": "val", "images": 64, "image_size": 32, "top1": 0.9,
        "shift": {"padding": "reflect", "offsets_px": offsets,
                  "consistency": {"axis": falling, "diagonal": [v**2 for v in falling]},
                  "top1": {"axis": [0.9 * v for v in falling],
                           "diagonal": [0.8 * v for v in falling]}},
        "occlusion": {"shares": [0.25, 0.5, 0.75],
                      "top1": (draw.uniform(0.7, 0.9) * np.array([1.0, 0.8, 0.4])).tolist()},
        "calibration": {"ece": draw.uniform(0.02, 0.1), "bins": [
            {"low": 0.6, "high": 0.8, "count": 24, "accuracy": 0.6, "confidence": 0.7},
            {"low": 0.8, "high": 1.0, "count": 40, "accuracy": draw.uniform(0.8, 1.0),
             "confidence": 0.95}]},
        "speed": {"device": "a processor", "precision": "fp32", "threads": 1,
                  **{f"batch_{size}": {"latency_ms": 2.0 * size**0.7 * draw.uniform(1, 1.1),
                                       "images_per_second": 500.0 * size**0.3, "n": 10}
                     for size in (1, 256)}},
    }  # fmt: skip
    if patch:
        found["attention_distance_px"] = (
            draw.uniform(4, 12, (6, 2)) + np.arange(6)[:, None]
        ).tolist()
    return found


def search_run(folder: Path, families: tuple[str, ...] = ("resnet", "vit", "hybrid"),
               *, trials: int = 8, epochs: int = 9, seed: int = 0,
               metric: str = "top1") -> Path:  # fmt: skip
    """A run as ASHA leaves one: rungs at 1 and 3, two thirds pruned at each, one failure."""
    draw = np.random.default_rng(seed)
    run = RunFolder(folder, families, max_epochs=epochs, metric=metric)
    for place, family in enumerate(families):
        for index in range(trials):
            top = 0.8 + 0.04 * place + 0.08 * draw.random()
            rate = 0.3 + draw.random()
            values = [float(top * (1 - np.exp(-rate * epoch))) for epoch in range(1, epochs + 1)]
            if metric == "loss":
                values = [-float(np.log(value)) for value in values]
            axes = {
                "learning_rate": float(10 ** draw.uniform(-4, -2)),
                "weight_decay": float(draw.uniform(0, 0.2)),
                "batch_size_per_worker": int(draw.choice([16, 32, 64])),
            }
            last = (1, 3, epochs)[0 if rate < 0.8 else 1 if rate < 1.0 else 2]
            if index == 0:
                last = epochs
            end = "finished" if last == epochs else "pruned"
            if index == 3:
                last, end = 2, "failed"
            run.trial(
                family, values[:last], end=end, seconds=1.0 + place, flops=(1 + place) * 1e9,
                promoted=tuple(e for e in (1, 3) if e < last), **axes,
            )  # fmt: skip
    return run.close()


def tournament_run(folder: Path, *, trials: int = 24, seeds: int = 3, audit: float = 0.25) -> Path:
    """A whole tournament: rungs at 1 and 3 of 9 epochs, an audit, finals with probes.

    Accuracy falls with the squared distance of the learning rate from 1e-3 and a little with
    weight decay; the nearer ones go on at each rung, of the others a share ``audit`` as well.
    """
    run = RunFolder(folder, ("resnet", "vit", "hybrid"))
    draw = np.random.default_rng(1)
    best: dict[str, tuple[float, str]] = {}
    for place, family in enumerate(run.counts):
        for index in range(trials):
            axes = {"learning_rate": float(10 ** draw.uniform(-4, -2)),
                    "weight_decay": float(draw.uniform(0, 0.2)),
                    "batch_size_per_worker": int(draw.choice([16, 32, 64]))}  # fmt: skip
            miss = float(np.log10(axes["learning_rate"] / 1e-3))
            top = 0.86 + 0.04 * place - 0.12 * miss**2 - 0.2 * axes["weight_decay"]
            rate = 0.6 + 0.05 * draw.random() - 0.15 * place
            values = [
                float(top * (1 - np.exp(-rate * epoch)) + draw.normal(0, 0.008))
                for epoch in range(1, 10)
            ]
            seen = miss**2 + float(draw.normal(0, 0.06))
            lost = 1 if seen > 0.35 else 3 if seen > 0.08 else None
            more: dict[str, Any] = {"seconds": 1.0 + place, "flops": (1 + place) * 1e9, **axes}
            if index == 5:
                run.trial(family, values[:2], end="failed", reason="diverged: loss is nan", **more)
            elif lost and draw.random() >= audit:
                passed = (1,) if lost == 3 else ()
                run.trial(family, values[:lost], end="pruned", promoted=passed, **more)
            else:
                passed = tuple(rung for rung in (1, 3) if lost is None or rung < lost)
                trial = run.trial(family, values, promoted=passed, audited=lost, **more)
                if not lost:
                    best[family] = max(best.get(family, (0.0, "")), (max(values), trial))
    frozen = {f: {"trial": t, "recipe_hash": "0", "val_top1": v} for f, (v, t) in best.items()}
    run.ledger.append("frozen", detail={"final_seeds": seeds, "winners": frozen})
    run.ledger.append("test_opened")
    hard = draw.normal(0, 1, 600)
    for place, family in enumerate(run.counts):
        for seed in range(seeds):
            correct = hard + draw.normal(0, 0.6, 600) < 1.0 + 0.15 * place
            found = probes(None if family == "resnet" else 4, seed=10 * place + seed)
            run.final(family, correct, seed=seed, winner=best[family][1], probes=found)
    return run.close()
