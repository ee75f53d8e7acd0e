"""Groups of images: in one split where splits are carved, counted where a source's own do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.cli.main import group as cli
from orchestrator.launch.plan import described
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec
from trainables.config import DataSpec
from trainables.data.build import find, prepare
from trainables.data.groups import leak
from trainables.data.sources import check_source
from trainables.data.store import assign_splits
from trainables.errors import UserError

SPLITS = ("train", "val", "test")
PATTERN = r"/(p\d+)_"


def rows_of(groups: list[tuple[list[int], int]], seed: int) -> tuple[Any, Any, Any]:
    """Labels, digests and groups of the images of ``groups``: classes of each, and copies."""
    draw = np.random.default_rng(seed)
    labels = np.array([label for classes, _ in groups for label in classes], np.int64)
    numbers = np.repeat(np.arange(len(groups)), [len(classes) for classes, _ in groups])
    digests = draw.integers(0, 2**64, len(labels), dtype=np.uint64)
    for number, (_, other) in enumerate(groups):  # an image of it is in another group too
        if other < len(groups):
            digests[np.flatnonzero(numbers == number)[0]] = digests[
                np.flatnonzero(numbers == other)[0]
            ]
    order = draw.permutation(len(labels))
    return labels[order], digests[order], numbers[order].astype(np.int64)


def components(groups: list[int], digests: list[int]) -> dict[int, int]:
    """By group, the lowest of those that it shares images with, and so on."""
    lowest = {group: group for group in groups}
    for _ in lowest:
        by_digest: dict[int, int] = {}
        for group, digest in zip(groups, digests, strict=True):
            by_digest[digest] = min(by_digest.get(digest, group), lowest[group])
        for group, digest in zip(groups, digests, strict=True):
            lowest[group] = min(lowest[group], by_digest[digest])
    return lowest


GROUPS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 400)),
    min_size=2,
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(GROUPS, st.integers(0, 2**32), st.floats(0.05, 0.4))
def test_a_group_lies_in_one_split_and_every_class_is_trained_on(
    groups: list[tuple[list[int], int]], seed: int, val: float
) -> None:
    labels, digests, numbers = rows_of(groups, seed)
    spec = DataSpec(val_fraction=val, split_seed=seed)
    try:
        assigned = assign_splits({"train": labels}, {"train": digests}, spec, {"train": numbers})
    except UserError:
        # Only where a class is in so few that each split cannot have one, and no class loses its
        # last: groups that share an image are one.
        together = components(numbers.tolist(), digests.tolist())
        assert min(len({together[n] for n in numbers[labels == c]}) for c in set(labels)) <= 2
        return
    rows = {split: assigned[split][1] for split in SPLITS}
    assert sorted(np.concatenate([*rows.values()])) == list(range(len(labels)))
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(numbers[rows[first]]) & set(numbers[rows[second]])
        assert not set(digests[rows[first]]) & set(digests[rows[second]])
    assert set(labels[rows["train"]]) == set(labels)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    again = assign_splits(
        {"train": labels[shuffled]}, {"train": digests[shuffled]}, spec,
        {"train": numbers[shuffled]},
    )  # fmt: skip
    for split in SPLITS:
        assert set(shuffled[again[split][1]]) == set(rows[split])


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 0.3), st.integers(1, 6))
def test_many_small_groups_are_stratified_nearly_as_images_are(
    seed: int, val: float, most: int
) -> None:
    draw = np.random.default_rng(seed)
    groups = [
        ([int(draw.choice(3, p=[0.6, 0.3, 0.1]))] * int(draw.integers(1, most + 1)), 400)
        for _ in range(300)
    ]
    labels, digests, numbers = rows_of(groups, seed)
    spec = DataSpec(val_fraction=val, split_seed=seed)
    assigned = assign_splits({"train": labels}, {"train": digests}, spec, {"train": numbers})
    for split, share in (("val", val), ("test", 0.1)):
        here = np.bincount(labels[assigned[split][1]], minlength=3)
        assert np.abs(here - share * np.bincount(labels)).max() <= most


def test_seeds_draw_other_groups() -> None:
    labels, digests, numbers = rows_of([([n % 2] * 4, 400) for n in range(100)], 0)

    def val_groups(seed: int) -> set[int]:
        spec = DataSpec(val_seed=seed)
        assigned = assign_splits({"train": labels}, {"train": digests}, spec, {"train": numbers})
        return set(numbers[assigned["val"][1]].tolist())

    drawn = [val_groups(seed) for seed in range(6)]
    assert all(len(one) == 10 for one in drawn)
    assert len(set.union(*drawn)) > 30  # of 90; the same ten would be 10


def picture(path: Path, draw: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def folder_of(root: Path, splits: dict[str, range], images: int = 3) -> Path:
    """For each split its patients, each with ``images`` pictures of one class."""
    draw = np.random.default_rng(0)
    for split, patients in splits.items():
        for patient in patients:
            for number in range(images):
                name = f"{'cat' if patient % 2 else 'dog'}/p{patient:03d}_{number}.png"
                picture(root / split / name, draw)
    return root


def test_plan_and_run_say_what_a_data_set_holds(tmp_path: Path) -> None:
    splits = {"train": range(30), "val": range(28, 36), "test": range(25, 33)}
    source = str(folder_of(tmp_path / "x", splits))
    data = DataSpec(source=source, folder=str(tmp_path / "stores"), group=PATTERN)
    sweeps = tuple(replace(family_sweep(name), data=data) for name in ("vit", "resnet"))
    spec = RunSpec(name="r", sweeps=sweeps, storage=str(tmp_path))
    facts = prepare(data).info
    (one,) = described(spec, {sweep.candidate: facts for sweep in sweeps})
    assert one.classes[0].startswith("train: ")
    assert one.classes[-1].startswith("groups by ")
    assert any("share groups" in line for line in one.warnings)
    text = "\n".join([*one.classes, *one.warnings])
    plain = replace(facts, class_counts=None)  # as a ledger of before has it: the store is asked
    (again,) = described(spec, {sweep.candidate: plain for sweep in sweeps})
    assert "\n".join([*again.classes, *again.warnings]) == text


@pytest.mark.parametrize("form", ["pixels", "encoded"])
def test_a_folder_is_grouped_by_a_pattern(tmp_path: Path, form: str) -> None:
    source = folder_of(tmp_path / "x", {".": range(40)})
    spec = DataSpec(source=str(source), group=PATTERN, folder=str(tmp_path / "stores"), store=form)
    store = prepare(spec)
    groups = {split: store.groups(split) for split in SPLITS}
    assert all(rows is not None and len(rows) == store.info.counts[split]
               for split, rows in groups.items())  # fmt: skip
    each = {split: set(rows.tolist()) for split, rows in groups.items() if rows is not None}
    assert each["train"] | each["val"] | each["test"] == set(range(40))
    assert sum(map(len, each.values())) == 40
    assert store.info.groups is not None
    assert store.info.groups.counts == {split: len(rows) for split, rows in each.items()}
    assert leak(store.info.groups) is None
    assert (find(spec) or store).path == store.path
    plain = prepare(replace(spec, group=None))
    assert (plain.info.groups, plain.groups("test")) == (None, None)
    assert plain.path != store.path
    assert "groups" not in plain.info.as_dict()


def test_a_leak_between_a_sources_own_splits_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": range(30), "val": range(28, 36), "test": range(25, 33)}
    source = folder_of(tmp_path / "x", splits)
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "stores"))
    result = CliRunner().invoke(
        cli, ["data", "info", str(source), "--set", f"data.group={PATTERN}", "--json"]
    )
    groups = json.loads(result.stdout)["dataset"]["groups"]
    assert groups["rule"] == PATTERN
    assert groups["counts"] == {"train": 30, "val": 8, "test": 8}
    assert groups["between"] == {"val/train": 2, "test/train": 5, "test/val": 5}
    assert groups["images"] == {"val/train": 6, "test/train": 15, "test/val": 15}
    assert groups["examples"] == ["p025", "p026", "p027"]
    result = CliRunner().invoke(
        cli, ["data", "info", str(source), "--set", f"data.group={PATTERN}"]
    )
    (line,) = [line for line in result.stdout.splitlines() if "share groups" in line]
    assert "5 groups of test, 15 images, in train too" in line
    assert "Fix: " in line


def test_a_table_is_grouped_by_a_column(tmp_path: Path) -> None:
    draw, rows, encoded = np.random.default_rng(0), ["path,label,group,eye"], []
    for patient in range(40):
        for eye in ("left", "right"):
            file = tmp_path / f"{patient}{eye}.png"
            picture(file, draw)
            rows.append(f"{file.name},{'cat' if patient % 2 else 'dog'},p{patient},{eye}{patient}")
            encoded.append({"image": file.read_bytes(), "label": patient % 2, "patient": patient})
    (tmp_path / "t.csv").write_text("\n".join(rows))
    pq.write_table(pa.Table.from_pylist(encoded), tmp_path / "t.parquet")
    stores = str(tmp_path / "stores")
    usual = prepare(DataSpec(source=str(tmp_path / "t.csv"), folder=stores)).info.groups
    assert usual is not None
    assert (usual.rule, sum(usual.counts.values())) == ("group", 40)
    eyes = DataSpec(source=str(tmp_path / "t.csv"), folder=stores, group="eye")
    assert sum((prepare(eyes).info.groups or usual).counts.values()) == 80
    table = DataSpec(source=str(tmp_path / "t.parquet"), folder=stores, group="patient")
    store = prepare(table)
    assert store.info.groups is not None
    assert sum(store.info.groups.counts.values()) == 40
    assert prepare(replace(table, group=None)).info.groups is None


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("(p", "regular expression"),
        (r"p\d+", "one capture"),
        (r"(p)(\d+)", "one capture"),
        (r"/(q\d+)_", "finds none in 120 of 120 paths"),
        (r"/(p0[01]\d)_", "finds none in 60 of 120 paths"),
        (r"/p\d+_(\d?)\d.png", "finds none"),
    ],
)
def test_patterns_that_find_no_group_are_one_line(
    tmp_path: Path, group: str, expected: str
) -> None:
    source = folder_of(tmp_path / "x", {".": range(40)})
    (line,) = check_source(DataSpec(source=str(source), group=group))
    assert expected in line
    assert "Fix: " in line
    assert "\n" not in line


def test_columns_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"], "label": [1], "who": [1.5]})
    pq.write_table(table, tmp_path / "t.parquet")
    for group in ("patient", "who", "image"):
        (line,) = check_source(DataSpec(source=str(tmp_path / "t.parquet"), group=group))
        assert "data.group" in line
        assert repr(group) in line
    (line,) = check_source(DataSpec(source="digits", group="patient"))
    assert "digits has no groups" in line


def test_one_group_cannot_be_split() -> None:
    labels, digests, numbers = rows_of([([0, 1] * 20, 400)], 0)
    with pytest.raises(UserError, match="1 groups of training images") as caught:
        assign_splits({"train": labels}, {"train": digests}, DataSpec(), {"train": numbers})
    assert "\n" not in str(caught.value)
