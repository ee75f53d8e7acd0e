"""A checkpoint of ours as a folder that timm loads without us: weights, config, code, README."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from trainables.backbones.adaptation import Geometry
from trainables.backbones.families import FAMILIES, describe, member_of
from trainables.backbones.model import Backbone, build
from trainables.backbones.weights import SUFFIXES
from trainables.config import Assignment, BackboneSpec
from trainables.errors import UserError
from trainables.export import timm_classifier
from trainables.train import checkpoint as checkpoints

CODE = Path(timm_classifier.__file__)
LIBRARIES = ("torch", "timm", "safetensors", "numpy")  # all that a portable folder needs

README = """# {title}

{said}
Pixels: RGB, `(N, {height}, {width}, 3)`, uint8 or floats in [0, 1]; the model's side is {side} px.
A larger picture: short side to {short} px (bicubic), then the centre.
Needs {libraries}. In this folder:

```python
import numpy
from timm_classifier import Classifier

images = numpy.zeros((2, {height}, {width}, 3), "uint8")
found = Classifier(".").predict(images)
print(found["label"], found["probabilities"].max(1))
```
{alone}"""
ALONE = """
With timm alone:

```python
import timm, torch

model = timm.create_model("local-dir:.", pretrained=True).eval()
look = model.pretrained_cfg
mean, std = (torch.tensor(look[key]).view(3, 1, 1) for key in ("mean", "std"))
pixels = torch.zeros((2, {height}, {width}, 3), dtype=torch.uint8)
batch = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
batch = torch.nn.functional.interpolate(batch, {side}, mode="bilinear", antialias={smaller})
probabilities = model(batch).softmax(1)
```
"""


def write(
    folder: Path,
    checkpoint: Path,
    assignment: Assignment,
    *,
    class_names: Sequence[str],
    height: int,
    width: int,
    trained: Mapping[str, Any],
    said: str,
) -> None:
    """Write ``model.safetensors``, ``config.json``, ``timm_classifier.py`` and ``README.md``.

    The moving average's weights where the recipe keeps one. ``height`` and ``width`` (pixels)
    are of the stored images, ``trained`` goes into the config as it is, ``said`` into the
    README. Raises ``UserError`` where the checkpoint is damaged, or of another model.
    """
    spec = assignment.backbone
    tensors = checkpoints.read_tensors(
        checkpoint, "model" if assignment.recipe.ema_decay is None else "ema"
    )
    geometry = describe(spec, height=height, width=width)
    # The geometry follows the first weights; spelled out, it is built without them.
    plain = replace(
        spec,
        weights="none",
        image_size=geometry.image_size,
        patch=geometry.patch,
        stem=geometry.stem or spec.stem,
    )
    backbone = build(plain, num_classes=len(class_names), height=height, width=width)
    try:
        backbone.module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} holds no {geometry.model} ({str(error).splitlines()[0]}). "
            "Fix: export a trial whose checkpoint is whole"
        ) from error
    mean, std = _statistics(spec, backbone)
    side = geometry.image_size
    timm.models.save_for_hf(
        backbone.module,
        str(folder),
        model_config={"label_names": list(class_names), "trained": dict(trained)},
        safe_serialization=True,
        data_config={
            "input_size": (3, side, side),
            "mean": mean,
            "std": std,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        },
    )
    exchanged = _record_stem(folder / "config.json", spec, geometry, backbone.module)
    shutil.copy(CODE, folder)
    texts = {
        **{"height": height, "width": width, "short": min(height, width), "side": side},
        **{"smaller": side < min(height, width), "libraries": ", ".join(LIBRARIES)},
    }
    alone = "" if exchanged else ALONE.format(**texts)
    title = f"{geometry.model}, {len(class_names)} classes"
    text = README.format(title=title, said=said, alone=alone, **texts)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _statistics(spec: BackboneSpec, backbone: Backbone) -> tuple[Any, Any]:
    """Mean and deviation of pixels that the weights were first trained with."""
    place = Path(spec.weights).expanduser()
    if spec.weights in ("none", "hub") or place.suffix in SUFFIXES:
        return backbone.mean, backbone.std
    if not place.is_dir():
        raise UserError(
            f"the folder of the first weights says what pixels they expect; {spec.weights} is "
            "gone. Fix: put it back, its config.json at least"
        )
    config = place / "config.json"
    stored = json.loads(config.read_text())["pretrained_cfg"] if config.is_file() else {}
    return stored.get("mean", backbone.mean), stored.get("std", backbone.std)


def _record_stem(config: Path, spec: BackboneSpec, geometry: Geometry, module: nn.Module) -> bool:
    """Name in timm's config what was exchanged for small images; ``False`` where nothing was."""
    exchanged = FAMILIES[spec.family].exchanged_stem(geometry, member_of(spec), module)
    if exchanged is None:
        return False
    content = json.loads(config.read_text(encoding="utf-8"))
    stem: dict[str, str | int | list[int]] = {"conv": exchanged.conv}
    if exchanged.pool is not None:
        stem["pool"] = exchanged.pool
    if exchanged.built_image_size is not None:
        stem["img_size"] = geometry.image_size
        content["model_args"]["img_size"] = exchanged.built_image_size
    conv: Any = module.get_submodule(exchanged.conv)
    stem |= {key: list(getattr(conv, key)) for key in ("kernel_size", "stride", "padding")}
    config.write_text(json.dumps({**content, "stem": stem}, indent=2), encoding="utf-8")
    return True
