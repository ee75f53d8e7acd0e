"""The image store: what is written is what is mapped, built once, never seen in part."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits

from trainables.config import DatasetFacts, DataSpec
from trainables.data import build
from trainables.data.build import prepare, seal
from trainables.data.sources import check_source, known_images
from trainables.data.store import Reading, open_store
from trainables.data.writing import lay_out_pixels, require_disk_space
from trainables.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def digits(folder):
    return prepare(DataSpec(folder=str(folder)))


def test_digits_are_scikit_learns(digits):
    reference = load_digits()
    expected = sorted(
        (tuple(round(v * 255 / 16) for v in image.ravel().tolist()), int(label))
        for image, label in zip(reference.images, reference.target, strict=True)
    )
    stored = []
    for name in ("train", "val", "test"):
        split = digits.split(name)
        assert (split.images == split.images[..., :1]).all(), "grey is replicated"
        stored += [
            (tuple(image[..., 0].ravel().tolist()), int(label))
            for image, label in zip(split.images, split.labels, strict=True)
        ]
    assert sorted(stored) == expected
    assert digits.info.class_names == tuple("0123456789")
    assert not digits.info.mirror_safe
    assert sum(digits.info.counts.values()) == 1797


def test_splits_are_read_only_views(digits):
    split = digits.split("train")
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    assert not split.images.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
    with pytest.raises(KeyError, match="train, val, test"):
        digits.split("validation")


def test_a_second_prepare_opens_the_first_ones_store(digits, folder, caplog):
    caplog.set_level("INFO", logger="trainables")
    again = prepare(DataSpec(folder=str(folder), train_limit=50, fraction=0.5))
    assert again == digits
    assert caplog.messages == []


def test_a_limit_above_the_data_is_said(folder, digits, caplog):
    caplog.set_level("INFO", logger="trainables")
    prepare(DataSpec(folder=str(folder), train_limit=10_000))
    assert "10000" in caplog.messages[0]
    assert "1437" in caplog.messages[0]


def test_split_seed_gives_another_store_of_other_content(digits, folder):
    other = prepare(DataSpec(folder=str(folder), split_seed=1))
    assert other.path != digits.path
    assert other.info.content_hash != digits.info.content_hash
    assert other.info.counts == digits.info.counts


def test_content_hash_is_the_same_in_another_folder(digits, tmp_path):
    assert prepare(DataSpec(folder=str(tmp_path))).info == digits.info


@pytest.mark.parametrize("damage", ["cut", "no info", "info cut", "split missing", "other schema"])
def test_a_damaged_store_is_built_again(digits, tmp_path, damage, caplog):
    shutil.copytree(digits.path, tmp_path / digits.path.name)
    copy = tmp_path / digits.path.name
    info = (copy / "info.json").read_text()
    if damage == "cut":
        with (copy / "train.arrow").open("r+b") as file:
            file.truncate(1000)
    elif damage == "no info":
        (copy / "info.json").unlink()
    elif damage == "info cut":
        (copy / "info.json").write_text(info[:100])
    elif damage == "split missing":
        (copy / "val.arrow").unlink()
    else:
        (copy / "info.json").write_text(json.dumps({**json.loads(info), "schema": 0}))
    assert open_store(copy) is None
    caplog.set_level("INFO", logger="trainables")
    rebuilt = prepare(DataSpec(folder=str(tmp_path)))
    assert rebuilt.path == copy
    assert rebuilt.info == digits.info
    assert any("damaged" in line for line in caplog.messages)


def test_pictures_that_turned_black_are_seen_and_the_store_is_built_again(
    digits, tmp_path, caplog, monkeypatch
):
    spec, copy = DataSpec(folder=str(tmp_path)), tmp_path / digits.path.name
    shutil.copytree(digits.path, copy)
    checked = []
    intact = build._intact
    monkeypatch.setattr(build, "_intact", lambda store: checked.append(1) or intact(store))
    for _ in range(3):
        assert build.find(spec).info == digits.info
    assert len(checked) == 1, "once for all, while nothing changes"
    with (copy / "train.arrow").open("r+b") as file:
        file.seek(40_000)
        file.write(bytes(3 * 64 * 600))
    assert open_store(copy) is not None, "no other sign of it"
    assert build.find(spec) is None
    caplog.set_level("INFO", logger="trainables")
    rebuilt = prepare(spec)
    assert any("damaged" in line for line in caplog.messages)
    for split in ("train", "val", "test"):
        assert np.array_equal(rebuilt.split(split).images, digits.split(split).images)
    assert len(checked) == 2
    monkeypatch.setattr(build, "BOOT_ID", tmp_path / "boot")
    (tmp_path / "boot").write_text("after a power cut")
    assert build.find(spec).info == digits.info
    assert len(checked) == 3, "and after each start of the machine"


def test_remains_of_a_killed_builder_are_not_seen_and_are_removed(digits, tmp_path):
    remains = tmp_path / f".{digits.path.name}.building-abc"
    remains.mkdir()
    (remains / "train.arrow").write_bytes(b"half")
    store = prepare(DataSpec(folder=str(tmp_path)))
    assert store.info == digits.info
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [store.path.name]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.just(3))
    ),
    st.data(),
)
def test_written_rows_come_back(tmp_path, pool, data):
    rows = np.array(
        data.draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=12)), dtype=np.int64
    )
    labels = np.arange(len(rows), dtype=np.int64) * 7
    digests = np.arange(len(rows), dtype=np.uint64) + np.uint64(2**63)
    counts = {}
    for name in ("train", "val", "test"):
        laid_out = lay_out_pixels(tmp_path / f"{name}.arrow", pool.shape[1:], labels, digests)
        laid_out[:] = pool[rows]
        counts[name] = len(rows)
    info = DatasetFacts(
        name="x",
        class_names=tuple(map(str, range(100))),
        height=pool.shape[1],
        width=pool.shape[2],
        channels=3,
        counts=counts,
        content_hash="",
        mirror_safe=True,
        skipped=0,
    )
    seal(tmp_path, info, {})
    store = open_store(tmp_path)
    assert store is not None
    assert replace(store.info, test_hash=None, class_counts=None) == info
    np.testing.assert_array_equal(store.split("val").images, pool[rows])
    np.testing.assert_array_equal(store.split("val").labels, labels)
    np.testing.assert_array_equal(store.digests("val"), digests)


def test_info_is_json_both_ways(digits):
    assert DatasetFacts.from_dict(json.loads(json.dumps(digits.info.as_dict()))) == digits.info


def test_a_disk_too_small_is_refused_before_anything_is_read(tmp_path):
    reading = Reading(class_names=("a", "b"), side=512, count=10**12, chunks=lambda: iter(()))
    with pytest.raises(UserError, match=r"needs .* GB of disk") as caught:
        require_disk_space(reading, tmp_path, "pixels")
    assert "--set data.short_side=256" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.folder") as caught:
        prepare(DataSpec(folder=str(tmp_path / "file")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"fraction": 0}, "data.fraction"),
        ({"fraction": 1.5}, "data.fraction"),
        ({"val_fraction": 0.0}, "data.val_fraction"),
        ({"test_fraction": 0.6}, "data.test_fraction"),
        ({"train_limit": 0}, "data.train_limit"),
        ({"train_limit": 2.5}, "data.train_limit"),
        ({"train_limit": True}, "data.train_limit"),
        ({"split_seed": -1}, "data.split_seed"),
        ({"short_side": 4}, "data.short_side"),
        ({"store": "files"}, "data.store"),
        ({"pixels_at_most_gb": -1}, "data.pixels_at_most_gb"),
        ({"fraction": "half"}, "data.fraction"),
        ({"fraction": float("nan")}, "data.fraction"),
        ({"archive": "x.tar.gz"}, "data.archive"),
        ({"source": "cifar11"}, "cifar10"),
        ({"source": "digit"}, "digits"),
        ({"source": "./no/such/folder"}, "must exist"),
    ],
)
def test_mistakes_are_one_line_each_and_leave_nothing(tmp_path, wrong, says):
    spec = DataSpec(**{"folder": str(tmp_path / "stores"), **wrong})
    mistakes = check_source(spec)
    assert len(mistakes) == 1
    assert says in mistakes[0]
    assert "Fix:" in mistakes[0]
    assert "\n" not in mistakes[0]
    with pytest.raises(UserError) as caught:
        prepare(spec)
    assert caught.value.mistakes == tuple(mistakes)
    assert not (tmp_path / "stores").exists()


def test_all_mistakes_are_reported_at_once():
    mistakes = check_source(DataSpec(source="cifar11", fraction=2, val_fraction=3, train_limit=0))
    assert len(mistakes) == 4


def test_a_near_path_is_named(tmp_path):
    (tmp_path / "flowers").mkdir()
    (mistake,) = check_source(DataSpec(source=str(tmp_path / "flower")))
    assert str(tmp_path / "flowers") in mistake


def test_a_known_dataset_is_as_the_table_says(digits):
    known, info = known_images(DataSpec()), digits.info
    assert known is not None
    read = ("name", "content_hash", "test_hash", "duplicates", "class_counts")
    assert replace(known, **{name: getattr(info, name) for name in read}) == info
