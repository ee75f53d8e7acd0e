"""What is said of how many images the classes have."""

from __future__ import annotations

import json
from typing import Any

from trainables.config import DatasetFacts, DataSpec
from trainables.data.balance import counts_lines, imbalance, limited
from trainables.data.build import prepare
from trainables.data.store import INFO, open_store


def facts(train: list[int], val: list[int] | None = None, **more: Any) -> DatasetFacts:
    counts = {"train": tuple(train), "val": tuple(val or train), "test": tuple(train)}
    names = tuple(f"c{i}" for i in range(len(train)))
    return DatasetFacts(height=8, width=8, class_names=names, class_counts=counts, **more)


def test_equal_classes_need_no_warning() -> None:
    assert list(imbalance(facts([90, 100, 11]))) == []


def test_ratio_few_images_and_absent_classes_are_named() -> None:
    ratio, few, absent = imbalance(facts([1000, 500, 9], [100, 50, 0]))
    assert "c0 1000, c2 9" in ratio
    assert "111 times" in ratio
    assert "recipe.class_weights" in ratio
    assert "c2 9" in few
    assert "fewer than 10" in few
    assert "c2" in absent
    assert "val" in absent
    for line in (ratio, few, absent):
        assert "Fix: " in line
        assert "\n" not in line


def test_a_part_of_train_that_is_too_small_for_its_classes_is_named() -> None:
    many = facts([100, 50], counts={"train": 150, "val": 15, "test": 15})
    assert list(limited(many, DataSpec())) == []
    assert list(limited(many, DataSpec(train_limit=30))) == []
    (line,) = limited(many, DataSpec(train_limit=29))
    assert "29 of 150 images" in line
    (line,) = limited(many, DataSpec(train_limit=40, fraction=0.5))
    assert "20 of 150 images" in line
    # imbalance() says so of all of train already
    assert list(limited(facts([100, 9], counts={"train": 109}), DataSpec(train_limit=20))) == []


def test_a_class_that_train_lacks_too_is_not_missed_in_val() -> None:
    assert list(imbalance(facts([50, 50, 0], [5, 5, 0]))) == []


def test_many_classes_are_told_by_the_largest_and_the_smallest() -> None:
    lines = counts_lines(facts([*range(20, 1020), 3]))
    assert [line.partition(":")[0] for line in lines] == ["train", "val", "test"]
    assert "1001 classes of 3 to 1019 images" in lines[0]
    assert "c1000 3" in lines[0]
    assert len(lines[0]) < 200
    assert counts_lines(facts([4, 7]))[0] == "train: c1 7, c0 4"
    assert counts_lines(DatasetFacts(height=8, width=8)) == []


def test_a_store_of_before_is_counted_when_it_is_opened(tmp_path: Any) -> None:
    store = prepare(DataSpec(folder=str(tmp_path)))
    file = store.path / INFO
    record = json.loads(file.read_text())
    counts = record["info"].pop("class_counts")
    file.write_text(json.dumps(record))
    opened = open_store(store.path)
    assert opened is not None
    assert opened.info.class_counts == {split: tuple(row) for split, row in counts.items()}
    assert opened.info == store.info
