"""Checkpoints: everything comes back bit for bit, or a sentence says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trainables.config import Recipe
from trainables.errors import UserError
from trainables.storage import digests
from trainables.train import checkpoint
from trainables.train.optimizer import build_optimizer


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, generator=generator)
    return {
        "float": values,
        "double": values.double() / 3,
        "bf16": values.bfloat16(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "strided": values.t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def test_tensors_and_state_survive_exactly(tmp_path: Path) -> None:
    state = {"progress": {"loss_sum": 0.1 + 0.2, "epoch": 3}, "ema_steps": None}
    folder = tmp_path / "deep" / "epoch-0003"
    checkpoint.write(folder, {"model": tensors()}, state)
    assert checkpoint.read_state(folder) == {"schema": 1, **state}
    loaded = checkpoint.read_tensors(folder, "model")
    assert loaded.keys() == tensors().keys()
    for name, value in tensors().items():
        if name != "channels_last":
            assert loaded[name].dtype == value.dtype
            assert torch.equal(loaded[name].nan_to_num(9), value.nan_to_num(9))
    assert checkpoint.read_tensors(folder, "ema") == {}
    assert [path.name for path in folder.parent.iterdir()] == ["epoch-0003"]


@given(st.floats(allow_nan=False))
def test_json_keeps_every_float(value: float) -> None:
    assert json.loads(json.dumps(value)) == value


def test_a_second_write_replaces_the_first_whole(tmp_path: Path) -> None:
    folder = tmp_path / "epoch-0001"
    checkpoint.write(folder, {"model": tensors(), "ema": tensors()}, {"n": 1})
    checkpoint.write(folder, {"model": {"only": torch.ones(1)}}, {"n": 2})
    assert checkpoint.read_state(folder)["n"] == 2
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "state.json"]


def test_a_failed_write_leaves_the_old_one_and_no_rubbish(tmp_path: Path) -> None:
    folder = tmp_path / "epoch-0001"
    checkpoint.write(folder, {"model": tensors()}, {"n": 1})
    with pytest.raises(TypeError):
        checkpoint.write(folder, {"model": tensors()}, {"n": object()})
    assert checkpoint.read_state(folder)["n"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


@pytest.mark.parametrize("damage", ["no folder", "no state", "not json", "schema", "cut tensors"])
def test_damage_is_a_sentence(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "epoch-0001"
    if damage != "no folder":
        checkpoint.write(folder, {"model": tensors()}, {})
    if damage == "no state":
        (folder / "state.json").unlink()
    if damage == "not json":
        (folder / "state.json").write_text("{")
    if damage == "schema":
        (folder / "state.json").write_text('{"schema": 99}')
    if damage == "cut tensors":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])

    def read() -> None:
        checkpoint.read_state(folder)
        checkpoint.read_tensors(folder, "model")

    with pytest.raises(UserError, match="Fix: ") as caught:
        read()
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("damage", ["zeroed tensors", "another state", "no tensors"])
def test_what_can_be_read_but_was_never_written_is_seen(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "epoch-0001"
    state = {"progress": {"epoch": 1, "loss": float("nan")}, "pair": (1, 2)}
    checkpoint.write(folder, {"model": tensors()}, state)
    assert digests.damage_of(folder, "state.json") is None
    assert checkpoint.read_tensors(folder, "model")
    file = folder / "model.safetensors"
    if damage == "zeroed tensors":  # still a file of safetensors, all of its values 0
        zeros = {name: torch.zeros_like(value) for name, value in load_file(file).items()}
        save_file(zeros, file)
        with pytest.raises(UserError, match="is damaged"):
            checkpoint.read_tensors(folder, "model")
    elif damage == "another state":
        text = (folder / "state.json").read_text()
        (folder / "state.json").write_text(text.replace('"epoch": 1', '"epoch": 2'))
    else:
        file.unlink()
    assert digests.damage_of(folder, "state.json") is not None


def test_a_checkpoint_of_before_digests_is_taken_at_its_word(tmp_path: Path) -> None:
    folder = tmp_path / "epoch-0001"
    checkpoint.write(folder, {"model": tensors()}, {"n": 1})
    state = json.loads((folder / "state.json").read_text())
    del state["digests"]
    (folder / "state.json").write_text(json.dumps(state))
    assert digests.damage_of(folder, "state.json") is None
    assert checkpoint.read_tensors(folder, "model")


def named_groups(module: torch.nn.Module) -> list[dict[str, Any]]:
    parameters = dict(module.named_parameters())
    return [
        {"params": [p], "names": [name], "weight_decay": 0.1, "lr_scale": 1.0}
        for name, p in parameters.items()
    ]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_goes_on_as_if_never_stopped(
    name: str, layout: torch.memory_format, tmp_path: Path
) -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 3))
        module = module.to(memory_format=layout)
        return module, build_optimizer(named_groups(module), Recipe(optimizer=name))

    def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        module(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()

    whole, optimizer = fresh()
    for seed in range(3):
        train(whole, optimizer, seed)
    parts = {"model": whole.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)}
    checkpoint.write(tmp_path / "c", parts, {})
    again, other = fresh()
    again.load_state_dict(checkpoint.read_tensors(tmp_path / "c", "model"))
    checkpoint.restore_optimizer(other, checkpoint.read_tensors(tmp_path / "c", "optimizer"))
    for seed in range(3, 6):
        train(whole, optimizer, seed)
        train(again, other, seed)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert a.equal(b)
        assert a.stride() == b.stride()
