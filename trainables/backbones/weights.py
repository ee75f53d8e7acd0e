"""Where weights come from: timm's hub, a file, a folder. Checked before anything is built."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.backbones.adaptation import Member
from trainables.backbones.families import member_of
from trainables.config import BackboneSpec
from trainables.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
PixelStatistics = Mapping[str, list[float]]  # ``mean`` and ``std``, where they are known
OTHER_WAYS = "Fix: --weights none (from scratch) or --weights PATH (a file or folder you have)"


def check_weights(spec: BackboneSpec, *, timeout_s: float = 8.0) -> list[str]:
    """Mistakes about weights, one line each: hub unreachable or empty, path missing.

    ``hub`` is answered from the local cache where the file is there, else by one request that
    waits ``timeout_s`` seconds at most. Never raises, never falls back to random weights.
    """
    if spec.weights == "none":
        return []
    if spec.weights == "hub":
        return _check_hub(member_of(spec), timeout_s)
    try:
        weights_file(spec.weights)
    except UserError as error:
        return list(error.mistakes)
    return []


def weights_file(path: str) -> Path:
    """The one weights file that ``path`` (file or folder) means; raises ``UserError``."""
    place = Path(path).expanduser()
    if place.is_dir():
        named = [place / name for name in HUB_FILES if (place / name).is_file()]
        files = named or sorted(p for p in place.iterdir() if p.suffix in SUFFIXES)
        if not files:
            raise UserError(
                f"--weights {path} is a folder without weights; expected one of "
                f"{', '.join(HUB_FILES)}. Fix: name the file, or --weights hub|none"
            )
        return files[0]
    if not place.is_file():
        raise UserError(f"--weights {path} does not exist. Fix: correct the path, or hub|none")
    if place.suffix not in SUFFIXES:
        raise UserError(
            f"--weights must be a file ending in {', '.join(SUFFIXES)} or a folder; got {path}. "
            "Fix: save a timm state dict as .safetensors"
        )
    return place


def read_weights(path: str, member: Member) -> tuple[dict[str, Tensor], PixelStatistics]:
    """State dict and, from a folder in timm's format, the statistics of pixels in
    its ``config.json`` (else empty).

    Pickled files are read with ``weights_only``. Raises ``UserError`` when the file is no state
    dict, or when the folder says that it holds another architecture.
    """
    from timm.models import load_state_dict

    file = weights_file(path)
    config_file = file.parent / "config.json"
    statistics: PixelStatistics = {}
    if Path(path).expanduser().is_dir() and config_file.is_file():
        stored = json.loads(config_file.read_text())
        statistics = stored.get("pretrained_cfg", {})
        architecture = stored.get("architecture", member.model)
        if architecture != member.model.partition(".")[0]:
            raise UserError(
                f"--weights {path} holds {architecture}; this backbone is {member.model}. "
                "Fix: choose the family and scale of these weights, or other weights"
            )
    try:
        state = load_state_dict(str(file))
    except Exception as error:  # each format fails in its own way; the line is the same
        raise UserError(
            f"--weights {path} is not a readable state dict ({first_line(error)}). "
            "Fix: save a timm state dict as .safetensors"
        ) from error
    if not state or not all(hasattr(value, "shape") for value in state.values()):
        raise UserError(
            f"--weights {path} holds no state dict of tensors. "
            "Fix: save model.state_dict() of a timm model as .safetensors"
        )
    return state, statistics


def _check_hub(member: Member, timeout_s: float) -> list[str]:
    if member.hub is None:
        return [f"no weights were published for {member.model} at this scale. {OTHER_WAYS}"]
    if cached_file(member.hub) is not None:
        return []
    reason = _unreachable(member.hub, timeout_s)
    if reason is None:
        return []
    return [f"--weights hub: {member.hub} cannot be reached ({reason}). {OTHER_WAYS}"]


def cached_file(repository: str) -> Path | None:
    """The weights file of a hub repository in the local cache, if it was downloaded before.

    Looks where huggingface_hub keeps it, without the second that its import takes.
    """
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")
    folder = Path(cache).expanduser() / f"models--{repository.replace('/', '--')}" / "snapshots"
    files = (file for name in HUB_FILES for file in sorted(folder.glob(f"*/{name}")))
    return next(files, None)


def _unreachable(repository: str, timeout_s: float) -> str | None:
    """Why the repository's weights cannot be had, or ``None`` when a server offers them."""
    # imported here: a command's help should not wait for it
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and the file is not in the local cache"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer: list[str | None] = [f"no answer from {endpoint} within {timeout_s:g} s"]

    def ask() -> None:
        url = f"{endpoint}/{repository}/resolve/main/{HUB_FILES[0]}"
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s):
                answer[0] = None
        except urllib.error.HTTPError as error:
            answer[0] = f"{endpoint} answers {error.code}"
        except (OSError, ValueError) as error:
            answer[0] = f"{endpoint}: {first_line(getattr(error, 'reason', error))}"

    # a thread, because name resolution obeys no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0]


def first_line(error: object) -> str:
    """The start of an error's message, for use within a line of our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
