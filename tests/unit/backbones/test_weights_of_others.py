"""Weights as other tools write them: prefixes, containers, folders of several, and what is refused.

The oracle is the state dict itself: whatever it is wrapped in, the model gets those values.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from trainables.backbones import build, check_weights
from trainables.config import BackboneSpec
from trainables.errors import UserError

MODEL = "test_resnet"
Wrap = Callable[[dict[str, Tensor]], Any]


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    torch.manual_seed(7)
    state: dict[str, Tensor] = timm.create_model(MODEL, num_classes=5).state_dict()
    return state


def built(path: Path, classes: int = 5) -> dict[str, Tensor]:
    spec = BackboneSpec(family="timm", model=MODEL, weights=str(path))
    state = build(spec, num_classes=classes, height=32, width=32).module.state_dict()
    return dict(state)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        built(path)
    (line,) = caught.value.mistakes
    assert "\n" not in line
    assert "Fix: " in line
    return line


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def headless(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


WRAPS: dict[str, Wrap] = {
    "plain": lambda state: state,
    "timm": lambda state: {"state_dict": state, "epoch": 3, "arch": MODEL},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3},
    "net": lambda state: {"net": state, "acc": 0.9},
    "nested": lambda state: {"model": {"state_dict": state}},
    "ema": lambda state: {"state_dict_ema": state, "state_dict": prefixed(state, "other.")},
    "beside a number": lambda state: {**state, "epoch": 3},
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: prefixed(state, "module._orig_mod."),
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {}},
    "Lightning, deeper": lambda state: {"state_dict": prefixed(state, "model.net.")},
    "backbone": lambda state: prefixed(headless(state), "backbone."),
    "encoder": lambda state: prefixed(headless(state), "encoder."),
    "Hugging Face": lambda state: prefixed(state, "timm_model."),
    "with a loss": lambda state: {"criterion.weight": torch.ones(5), **prefixed(state, "model.")},
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("tool", WRAPS)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_the_model_gets_its_values_whatever_they_are_wrapped_in(
    tmp_path: Path, original: dict[str, Tensor], tool: str, suffix: str
) -> None:
    torch.save(WRAPS[tool](original), tmp_path / f"w{suffix}")
    made = built(tmp_path / f"w{suffix}")
    names = [name for name in original if not name.startswith("fc.")]
    exact = {name: original[name] for name in names}
    if tool == "half":
        exact = {k: v.half().float() if v.is_floating_point() else v for k, v in exact.items()}
    assert all(made[name].equal(value) for name, value in exact.items())


def test_a_prefix_that_is_left_out_is_said(
    tmp_path: Path, original: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trainables")
    state = {"criterion.weight": torch.ones(5), **prefixed(original, "model.")}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    built(tmp_path / "w.ckpt")
    assert "the prefix 'model.' of its names is left out; 1 tensors" in caplog.text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {**prefixed(s, "model."), **prefixed(s, "ema_model.")},
        lambda s: {"teacher": s, "student": s},
        lambda s: {"teacher": prefixed(s, "backbone."), "student": prefixed(s, "backbone.")},
        lambda s: {**prefixed(s, "encoder_q."), **prefixed(s, "encoder_k.")},
    ],
)
def test_a_model_that_is_there_twice_is_not_guessed(
    tmp_path: Path, original: dict[str, Tensor], wrap: Wrap
) -> None:
    torch.save(wrap(original), tmp_path / "w.pth")
    assert "holds the model 2 times" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, original: dict[str, Tensor], value: float
) -> None:
    state = {name: tensor.clone() for name, tensor in original.items()}
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, tmp_path / "w.safetensors")
    line = refusal(tmp_path / "w.safetensors")
    assert "layer1.0.conv1.weight" in line
    assert "finite" in line


def test_quantised_weights_are_refused(tmp_path: Path, original: dict[str, Tensor]) -> None:
    state = {**original, "conv1.0.weight": original["conv1.0.weight"].to(torch.int8)}
    save_file(state, tmp_path / "w.safetensors")
    assert "floating-point numbers" in refusal(tmp_path / "w.safetensors")


def test_weights_of_another_model_name_their_prefix(tmp_path: Path) -> None:
    other = timm.create_model("test_vit", num_classes=5).state_dict()
    torch.save(prefixed(other, "model."), tmp_path / "w.pth")
    assert "begin with 'model'" in refusal(tmp_path / "w.pth")


def test_folders_of_several_checkpoints(tmp_path: Path, original: dict[str, Tensor]) -> None:
    for name in ("epoch-1.pth", "epoch-2.pth", "last.ckpt"):
        torch.save(original, tmp_path / name)
    spec = BackboneSpec(family="timm", model=MODEL, weights=str(tmp_path))
    (line,) = check_weights(spec)
    assert "epoch-1.pth, epoch-2.pth, last.ckpt" in line
    save_file(original, tmp_path / "model.safetensors")  # the name that means the folder's model
    assert check_weights(spec) == []


def test_hidden_files_beside_one_checkpoint(tmp_path: Path, original: dict[str, Tensor]) -> None:
    torch.save(original, tmp_path / "w.pth")
    (tmp_path / "._w.pth").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert built(tmp_path)["conv1.0.weight"].equal(original["conv1.0.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "w.pth"])
def test_a_pointer_in_place_of_weights_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    for path in (tmp_path, tmp_path / name):
        (line,) = check_weights(BackboneSpec(family="timm", model=MODEL, weights=str(path)))
        assert "git lfs pull" in line


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.pth").symlink_to("/data/not/mounted/w.pth")
    weights = str(tmp_path / "w.pth")
    (line,) = check_weights(BackboneSpec(family="timm", model=MODEL, weights=weights))
    assert "/data/not/mounted/w.pth, which is not there" in line


WORDS = st.sampled_from(["module", "model", "net", "backbone", "0", "timm_model", "layer1", "fc"])
ENTRIES = st.sampled_from(["state_dict", "model", "net", "weights", "ema", "optimizer"])
COMPANIONS: dict[str, Wrap] = {
    "a number": lambda state: {"epoch": 3},
    "an optimizer": lambda state: {
        "optim": {"state": {i: {"exp_avg": v} for i, v in enumerate(state.values())}}
    },
    "tensors": lambda state: {"criterion.weight": torch.ones(5), "queue": torch.ones(2, 3)},
    "a part": lambda state: {"old": {"conv1.0.weight": state["conv1.0.weight"] + 1}},
}


@settings(max_examples=40, deadline=None)
@given(
    prefix=st.lists(WORDS, max_size=3),
    entries=st.lists(ENTRIES, max_size=3),
    companions=st.sets(st.sampled_from(sorted(COMPANIONS))),
    with_head=st.booleans(),
    fault=st.sampled_from(["none", "none", "gone", "reshaped", "nan"]),
    suffix=st.sampled_from([".pth", ".ckpt", ".bin"]),
    data=st.data(),
)
def test_the_body_has_the_values_of_the_file_or_the_file_is_refused(
    original: dict[str, Tensor],
    prefix: list[str],
    entries: list[str],
    companions: set[str],
    with_head: bool,
    fault: str,
    suffix: str,
    data: st.DataObject,
) -> None:
    body = headless(original)
    state = dict(original if with_head else body)
    victim = data.draw(st.sampled_from([name for name in body if body[name].ndim]))
    if fault == "gone":
        del state[victim]
    elif fault == "reshaped":
        state[victim] = torch.ones(*body[victim].shape, 2)
    elif fault == "nan":
        state[victim] = torch.full_like(body[victim], float("nan"))
    stored: dict[str, Any] = prefixed(state, "".join(f"{word}." for word in prefix))
    for entry in entries:
        stored = {entry: stored}
    for companion in companions:
        stored = {**COMPANIONS[companion](original), **stored}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"w{suffix}"
        torch.save(stored, path)
        # Beside the model's own names others are another model's, not somebody's loss.
        is_mixed = "tensors" in companions and not prefix and not entries
        if is_mixed or fault != "none":
            line = refusal(path)
            assert fault != "none" or "criterion.weight" in line
            return
        made = built(path)
    assert all(made[name].equal(value) for name, value in body.items())
