"""A checkpoint as a folder that timm loads without this project: weights, config, code, README."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from trainables.backbones.families import FAMILIES, member_of
from trainables.config import Assignment, BackboneSpec, DatasetFacts
from trainables.data.build import prepare
from trainables.evaluate.model import evaluate_split, load_model
from trainables.export import timm_classifier
from trainables.metrics import TOP1
from trainables.train.loop import TrainedModel

CODE = Path(timm_classifier.__file__)
README, TIMM_ALONE = CODE.with_name("readme.md"), CODE.with_name("readme_timm_alone.md")
CHECKED_IMAGES = 500


def write(
    folder: Path,
    checkpoint: Path,
    assignment: Assignment,
    *,
    dataset: DatasetFacts,
    trained: Mapping[str, Any],
) -> None:
    """Write ``model.safetensors``, ``config.json``, ``timm_classifier.py`` and ``README.md``.

    The moving average's weights where the recipe keeps one. ``trained`` says of which trial and how
    good the model is, as ``orchestrator.tracking.view.model_facts``; it goes into config and
    README. Raises ``UserError`` where the checkpoint is damaged, or of another model.
    """
    names, height, width = dataset.class_names, dataset.height, dataset.width
    model = load_model(assignment, checkpoint, dataset)
    geometry = model.geometry
    side = geometry.image_size
    timm.models.save_for_hf(
        model.module.to(memory_format=torch.contiguous_format),
        str(folder),
        model_config={"label_names": list(names), "trained": dict(trained)},
        safe_serialization=True,
        data_config={
            "input_size": (3, side, side),
            "mean": model.transform.mean,
            "std": model.transform.std,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        },
    )
    exchanged = _record_stem(folder / "config.json", assignment.backbone, model)
    shutil.copy(CODE, folder)
    texts = [README] if exchanged else [README, TIMM_ALONE]
    short, test = min(height, width), ""
    if "test_top1" in trained:
        test = f", on {trained.get('test_images', 'the')} test images {trained['test_top1']:.4f}"
    judged = trained.get("metric", TOP1.name)
    if judged != TOP1.name:
        test += f"; chosen by {judged}, {trained[f'val_{judged}']:.4f} on validation"
    filled = "".join(text.read_text(encoding="utf-8") for text in texts).format(
        title=f"{geometry.model}, {len(names)} classes",
        trained=trained,
        test=test,
        height=height,
        width=width,
        side=side,
        short=short,
        smaller=side < short,
    )
    (folder / "README.md").write_text(filled, encoding="utf-8")


def _record_stem(config: Path, spec: BackboneSpec, model: TrainedModel) -> bool:
    """Name in timm's config what was exchanged for small images; ``False`` where nothing was."""
    exchanged = FAMILIES[spec.family].exchanged_stem(model.geometry, member_of(spec))
    if exchanged is None:
        return False
    content = json.loads(config.read_text(encoding="utf-8"))
    stem: dict[str, str | int | list[int]] = {"conv": exchanged.conv}
    if exchanged.pool is not None:
        stem["pool"] = exchanged.pool
    if exchanged.built_image_size is not None:
        stem["img_size"] = model.geometry.image_size
        content["model_args"]["img_size"] = exchanged.built_image_size
    conv: Any = model.module.get_submodule(exchanged.conv)
    stem |= {key: list(getattr(conv, key)) for key in ("kernel_size", "stride", "padding")}
    config.write_text(json.dumps({**content, "stem": stem}, indent=2), encoding="utf-8")
    return True


def agreement(assignment: Assignment, checkpoint: str, folder: Path) -> tuple[int, int]:
    """Of how many validation images: the same class by ``checkpoint`` and by ``folder``.

    Of the first ``CHECKED_IMAGES``, on the CPU. Raises ``UserError`` as restoring a trial does.
    """
    store = prepare(assignment.data, remote=assignment.remote)
    expected = evaluate_split(assignment, checkpoint, "val", store=store, limit=CHECKED_IMAGES)
    images = store.split("val").images[:CHECKED_IMAGES]
    exported = timm_classifier.Classifier(folder).predict(images)["probabilities"].argmax(1)
    return int((expected == exported).sum()), len(exported)
