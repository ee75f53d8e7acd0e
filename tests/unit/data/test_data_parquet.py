"""Parquet: column kinds, labels, Hugging Face's layout, and each mistake as one line."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainables.config import DataSpec
from trainables.data.build import prepare
from trainables.data.parquet import split_of
from trainables.data.sources import check_source
from trainables.errors import UserError


def encoded(value, size=8):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def table(count=20, labels=None, image="struct", column="label", names=None, start=0):
    """``count`` flat grey pictures, the value of picture i is start + i; sorted by label."""
    pictures = [encoded((start + index) % 256) for index in range(count)]
    if image == "struct":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": p, "path": None} for p in pictures], type=kind)
    else:
        images = pa.array(pictures, type=image)
    labels = [2 * index // count for index in range(count)] if labels is None else labels
    made = pa.table({"image": images, column: labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    return made


def write(path, made, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **options)
    return path


def store_of(path, tmp_path, **spec):
    return prepare(DataSpec(source=str(path), folder=str(tmp_path / "stores"), **spec))


def mistake_of(path, tmp_path, **spec):
    with pytest.raises(UserError) as caught:
        store_of(path, tmp_path, **spec)
    (mistake,) = caught.value.mistakes
    assert "\n" not in mistake
    assert "Fix:" in mistake
    stores = tmp_path / "stores"
    assert not stores.exists() or all(entry.suffix == ".lock" for entry in stores.iterdir())
    return mistake


def values_of(store, name):
    """{(grey value, class name)} of a split."""
    split = store.split(name)
    assert (split.images == split.images[:, :1, :1, :1]).all()
    return {
        (int(image[0, 0, 0]), store.info.class_names[label])
        for image, label in zip(split.images, split.labels, strict=True)
    }


@pytest.mark.parametrize("image", ["struct", pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("rows", [3, 1000])
def test_pictures_keep_their_labels_through_row_groups(tmp_path, image, rows):
    file = write(tmp_path / "set.parquet", table(40, image=image), row_group_size=rows)
    store = store_of(file, tmp_path)
    assert store.info.counts == {"train": 32, "val": 4, "test": 4}
    everything = [values_of(store, name) for name in ("train", "val", "test")]
    assert set.union(*everything) == {(i, str(i // 20)) for i in range(40)}
    for split in everything:  # sorted by label in the file, and yet both classes in each
        assert {name for _, name in split} == {"0", "1"}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["dog", "cat"] * 10, ("cat", "dog")),
        (pa.array(["dog", "cat"] * 10).dictionary_encode(), ("cat", "dog")),
        ([7, 3] * 10, ("3", "7")),
        ([True, False] * 10, ("False", "True")),
    ],
)
def test_labels_of_each_kind(tmp_path, labels, names):
    store = store_of(write(tmp_path / "x.parquet", table(labels=labels)), tmp_path)
    assert store.info.class_names == names
    first = str(labels[0])
    assert (0, first) in set.union(*(values_of(store, n) for n in ("train", "val", "test")))


@pytest.mark.parametrize("column", ["label", "labels", "fine_label", "class", "breed"])
def test_class_names_of_hugging_face(tmp_path, column):
    made = table(column=column, names=["cat", "dog", "cow"])
    store = store_of(write(tmp_path / "x.parquet", made), tmp_path)
    assert store.info.class_names == ("cat", "dog", "cow")
    assert set(store.split("train").labels) == {0, 1}


def test_splits_by_hugging_faces_names(tmp_path):
    data = tmp_path / "set" / "data"
    write(data / "train-00000-of-00002.parquet", table(20, start=0))
    write(data / "train-00001-of-00002.parquet", table(20, start=20))
    write(data / "validation-00000-of-00001.parquet", table(10, start=100))
    write(data / "test-00000-of-00001.parquet", table(6, start=200))
    store = store_of(tmp_path / "set", tmp_path)
    assert store.info.counts == {"train": 40, "val": 10, "test": 6}
    assert {value for value, _ in values_of(store, "train")} == set(range(40))
    assert {value for value, _ in values_of(store, "val")} == set(range(100, 110))
    assert {value for value, _ in values_of(store, "test")} == set(range(200, 206))


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/valid-00000-of-00001-abc.parquet", "val"),
        ("default/test/0000.parquet", "test"),
        ("default/validation/0000.parquet", "val"),
        ("cifar10-test.parquet", "test"),
        ("dev.parquet", "val"),
        ("contest.parquet", "train"),
        ("latest/trainers.parquet", "train"),
        ("test[0].parquet", "test"),
        ("00001.parquet", "train"),
    ],
)
def test_split_of_a_files_name(tmp_path, file, split):
    assert split_of((tmp_path / file).relative_to(tmp_path)) == split


def test_a_single_file_is_train_whatever_its_name(tmp_path):
    store = store_of(write(tmp_path / "test-00000-of-00001.parquet", table()), tmp_path)
    assert store.info.counts == {"train": 16, "val": 2, "test": 2}


def test_unlabelled_test_files_are_left_out_and_said(tmp_path, caplog):
    names = ["cat", "dog"]
    write(tmp_path / "x" / "train-0.parquet", table(names=names))
    write(tmp_path / "x" / "test-0.parquet", table(4, labels=[-1] * 4, names=names))
    caplog.set_level("INFO", logger="trainables")
    store = store_of(tmp_path / "x", tmp_path)
    assert store.info.counts == {"train": 16, "val": 2, "test": 2}
    assert any("no labels" in line for line in caplog.messages)


def test_the_order_of_rows_changes_nothing(tmp_path):
    made = table(30)
    one = store_of(write(tmp_path / "one.parquet", made), tmp_path)
    turned = made.take(np.random.default_rng(0).permutation(30))
    other = store_of(write(tmp_path / "other.parquet", turned), tmp_path)
    assert one.path != other.path
    assert one.info.content_hash == other.info.content_hash


def test_corrupt_rows_are_refused_by_number_or_skipped_and_counted(tmp_path):
    made = table(20, image=pa.binary())
    pictures = made.column("image").to_pylist()
    pictures[13] = b"broken"
    pictures[17] = None
    made = made.set_column(0, "image", pa.array(pictures, type=pa.binary()))
    file = write(tmp_path / "x.parquet", made, row_group_size=5)
    mistake = mistake_of(file, tmp_path)
    assert f"{file} row 13 (not a picture in JPEG, PNG, GIF, BMP, WebP, TIFF, " in mistake
    assert f"{file} row 17 (no bytes)" in mistake
    assert "--set data.skip_corrupt=true" in mistake
    store = store_of(file, tmp_path, skip_corrupt=True)
    assert store.info.skipped == 2
    assert sum(store.info.counts.values()) == 18


@pytest.mark.parametrize(
    ("made", "says", "at_once"),
    [
        (table().drop_columns("image"), "image column", True),
        (table().drop_columns("label"), "label column", True),
        (table(labels=[0.5] * 20), "label column", True),
        (table(labels=[1] * 20), "at least two classes", False),
        (table(labels=[0, None] * 10), "empty at row 1", False),
        (table(labels=[0, 5] * 10, names=["a", "b"]), "holds 5", False),
        (table(2), "too few images", False),
    ],
)
def test_mistakes(tmp_path, made, says, at_once):
    file = write(tmp_path / "x.parquet", made)
    assert says in mistake_of(file, tmp_path)
    if at_once:
        assert says in check_source(DataSpec(source=str(file)))[0]


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    assert "readable as Parquet" in mistake_of(tmp_path / "x.parquet", tmp_path)


def test_a_folder_without_train_files(tmp_path):
    write(tmp_path / "x" / "test-0.parquet", table())
    assert "needs a train split" in mistake_of(tmp_path / "x", tmp_path)


def test_files_that_disagree_on_columns(tmp_path):
    write(tmp_path / "x" / "train-0.parquet", table())
    write(tmp_path / "x" / "test-0.parquet", table(column="class"))
    assert "all Parquet files" in mistake_of(tmp_path / "x", tmp_path)
