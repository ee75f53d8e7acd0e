"""A fine-tuned timm model by itself: needs torch, timm, safetensors and numpy, nothing else.

    from timm_classifier import Classifier
    Classifier("FOLDER").predict(images)  # RGB, (N, H, W, 3): uint8, or floats in [0, 1]

This file is shipped beside every exported model, as it is; MLflow enters by ``_load_pyfunc``.
The folder's ``config.json`` is timm's own, with one entry more: ``stem`` names what was exchanged
in the first layers for small images, which no argument of timm expresses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 256


def build(config: Mapping[str, Any]) -> nn.Module:
    """The module, its weights still random: (B, 3, S, S) normalised to logits (B, classes)."""
    arguments = {"num_classes": config["num_classes"], **config["model_args"]}
    module: nn.Module = timm.create_model(config["architecture"], **arguments)
    stem = config.get("stem")
    if stem:
        conv: Any = module.get_submodule(stem["conv"])
        for key in ("kernel_size", "stride", "padding"):
            setattr(conv, key, tuple(stem[key]))
        height, width = conv.kernel_size
        conv.weight = nn.Parameter(conv.weight.detach()[:, :, :height, :width].clone())
        if "pool" in stem:
            module.set_submodule(stem["pool"], nn.Identity())
        if "img_size" in stem:
            module.set_input_size(img_size=stem["img_size"])  # type: ignore[operator]
    return module


class Classifier:
    """The model in ``folder``, ready to predict on ``device``."""

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.device = device
        self.module = build(self.config)
        self.module.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        self.module.eval().to(device)
        cfg = self.config["pretrained_cfg"]
        self.side = cfg["input_size"][-1]
        self.class_names = np.array(self.config["label_names"])
        mean, std = (torch.tensor(cfg[k], device=device).view(3, 1, 1) for k in ("mean", "std"))
        self._scale, self._offset = 1 / (255 * std), mean / std

    def inputs(self, images: npt.NDArray[Any]) -> Tensor:
        """Pixels (B, H, W, 3) as the module takes them: (B, 3, S, S) float32."""
        pixels = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2)
        if pixels.is_floating_point():
            pixels = 255 * pixels
        batch = pixels.float() * self._scale - self._offset
        height, width = batch.shape[2:]
        if (height, width) == (self.side, self.side):
            return batch
        smaller = self.side < min(height, width)
        return F.interpolate(batch, (self.side, self.side), mode="bilinear", antialias=smaller)

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """``label`` (N,) and ``probabilities`` (N, classes) of images (N, H, W, 3)."""
        parts = [
            self.module(self.inputs(images[start : start + BATCH])).softmax(1).float().cpu()
            for start in range(0, len(images), BATCH)
        ]
        probabilities = torch.cat(parts).numpy()
        return {"label": self.class_names[probabilities.argmax(1)], "probabilities": probabilities}


def _load_pyfunc(path: str) -> Classifier:
    return Classifier(path)
