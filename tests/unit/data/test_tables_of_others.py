"""Parquet that other tools wrote: types, columns, labels that are missing, files that disagree.

Read right or refused by name, never a class that is a missing label, never one that vanishes.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.config import DataSpec
from trainables.data import labels as label_values
from trainables.data.build import prepare
from trainables.data.parquet import locate, split_of
from trainables.data.sources import check_source
from trainables.data.store import ImageStore
from trainables.errors import UserError


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(
    file: Path, labels: Any, image: Any = None, column: str = "label", seed: int = 0, **more: Any
) -> Path:
    """A Parquet file; ``image`` is the type of its pictures, or makes a column of their bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures = [encoded(seed + index) for index in range(len(labels))]
    images = image(pictures) if callable(image) else pa.array(pictures, type=image or pa.binary())
    pq.write_table(pa.table({"image": images, column: labels, **more}), file)
    return file


def named(file: Path, names: Any, column: str = "label") -> None:
    """Give the file Hugging Face's description of its columns."""
    features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    table = pq.read_table(file).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, file)


def store_of(path: Path, tmp_path: Path, **spec: Any) -> ImageStore:
    return prepare(DataSpec(source=str(path), folder=str(tmp_path / "stores"), **spec))


def refusal(path: Path, **spec: Any) -> str:
    (line,) = check_source(DataSpec(source=str(path), **spec))
    assert "\n" not in line
    assert "Fix: " in line
    return line


def late_refusal(path: Path, tmp_path: Path, **spec: Any) -> str:
    with pytest.raises(UserError) as caught:
        store_of(path, tmp_path, **spec)
    (line,) = caught.value.mistakes
    assert "Fix: " in line
    return line


def as_struct(kind: pa.DataType) -> Any:
    fields = pa.struct([("bytes", kind), ("path", pa.string())])
    return lambda pictures: pa.array([{"bytes": p, "path": "x"} for p in pictures], type=fields)


def as_list(pictures: Sequence[bytes]) -> pa.Array:
    fields = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.array([[{"bytes": p, "path": None}] for p in pictures], type=fields)


def as_extension(pictures: Sequence[bytes]) -> pa.Array:
    return pa.ExtensionArray.from_storage(
        pa.opaque(pa.binary(), "picture", "vendor"), pa.array(pictures, type=pa.binary())
    )


@pytest.mark.parametrize(
    "image",
    [
        pa.binary_view(),
        pa.large_binary(),
        as_struct(pa.binary_view()),
        as_struct(pa.large_binary()),
        as_list,
        as_extension,
        lambda pictures: pa.array(pictures, type=pa.binary()).dictionary_encode(),
    ],
)
def test_pictures_of_any_layout_of_bytes(tmp_path: Path, image: Any) -> None:
    file = write(tmp_path / "x.parquet", ["cat", "dog"] * 10, image=image)
    assert sum(store_of(file, tmp_path).info.counts.values()) == 20


WORDS = ["dog", "cat"] * 10


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array(WORDS, type=pa.string_view()), ("cat", "dog")),
        (pa.array(WORDS, type=pa.large_string()), ("cat", "dog")),
        (pa.array(WORDS, type=pa.large_string()).dictionary_encode(), ("cat", "dog")),
        (pa.array([3, 7] * 10, type=pa.uint8()), ("3", "7")),
        (pa.array([3, 7] * 10, type=pa.int16()).dictionary_encode(), ("3", "7")),
        (pa.array([-1, 1] * 10), ("-1", "1")),  # a sign is two classes
        (pa.array([True, False] * 10), ("False", "True")),
    ],
)
def test_labels_of_any_layout(tmp_path: Path, labels: pa.Array, names: tuple[str, ...]) -> None:
    file = write(tmp_path / "x.parquet", labels)
    assert store_of(file, tmp_path).info.class_names == names


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (pa.array([0.0, 1.0] * 9 + [1.0, None]), "double"),
        (pa.array([0, 1] * 10, type=pa.float32()), "float"),
        (pa.array([Decimal(0), Decimal(1)] * 10), "decimal128"),
        (pa.array([[0], [1]] * 10), "list"),
        (pa.array([b"cat", b"dog"] * 10), "binary"),
        (pa.array([None] * 20, type=pa.null()), "null"),
    ],
)
def test_the_type_of_a_label_column_is_named(tmp_path: Path, labels: pa.Array, kind: str) -> None:
    line = refusal(write(tmp_path / "x.parquet", labels))
    assert "label column" in line
    assert kind in line
    assert "rename" not in line


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", ["a", "b"] * 10, column="species", year=[1, 2, 3, 4] * 5)
    assert "--set data.label_column=" in refusal(file)
    assert store_of(file, tmp_path, label_column="species").info.class_names == ("a", "b")
    assert len(store_of(file, tmp_path, label_column="year").info.class_names) == 4
    assert "'nothing'" in refusal(file, label_column="nothing")
    assert "data.image_column" in refusal(file, image_column="year", label_column="species")


def test_two_columns_of_pictures_are_not_guessed_between(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", ["a", "b"] * 10)
    table = pq.read_table(file)
    pictures = table.column("image")
    table = pa.table({"mask": pictures, "photo": pictures, "label": table.column("label")})
    pq.write_table(table, file)
    assert "mask, photo" in refusal(file)
    assert sum(store_of(file, tmp_path, image_column="photo").info.counts.values()) == 20


@pytest.mark.parametrize("source", ["digits", "FOLDER"])
def test_columns_are_for_parquet(tmp_path: Path, source: str) -> None:
    place = tmp_path if source == "FOLDER" else source
    assert "are for Parquet" in refusal(Path(place), label_column="species")


@pytest.mark.parametrize(
    ("missing", "others"),
    [(-1, [0, 1]), ("", ["a", "b"]), ("unlabeled", ["a", "b"]), ("-1", ["0", "1"]),
     ("NaN", ["a", "b"]), ("  ", ["a", "b"]), (None, ["a", "b"]), (None, [0, 1]),
     ("<NA>", ["a", "b"])],
)  # fmt: skip
@pytest.mark.parametrize("names", [None, ["x", "y"]])
def test_a_missing_label_is_no_class(
    tmp_path: Path, missing: Any, others: list[Any], names: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trainables")
    root = tmp_path / "x"
    write(root / "train-0.parquet", others * 10 + [missing] * 3)
    write(root / "test-0.parquet", pa.array([missing] * 4, pa.array(others).type), seed=90)
    if names and isinstance(others[0], int):
        named(root / "train-0.parquet", names)
        named(root / "test-0.parquet", names)
    line = late_refusal(root, tmp_path)
    assert "row 20 of train" in line
    assert "3 rows" in line
    store = store_of(root, tmp_path, skip_unlabelled=True)
    assert len(store.info.class_names) == 2
    assert store.info.counts == {"train": 16, "val": 2, "test": 2}
    assert "test files carry no labels" in caplog.text
    assert "3 rows of train have no label" in caplog.text


def test_a_test_split_without_a_type_of_labels_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "x" / "train-0.parquet", ["a", "b"] * 10)
    write(tmp_path / "x" / "test-0.parquet", pa.nulls(5), seed=90)
    assert store_of(tmp_path / "x", tmp_path).info.counts["test"] == 2


@pytest.mark.parametrize(
    ("train", "test", "kinds"),
    [
        ([0, 1], ["0", "1"], ("int64", "string")),
        (["a", "b"], [0, 1], ("string", "int64")),
        ([True, False], [1, 0], ("bool", "int64")),
        ([0, 1], [0.0, 1.0], ("double",)),
        ([0, 1], [[0], [1]], ("list",)),
    ],
)
def test_files_whose_labels_are_of_other_types(
    tmp_path: Path, train: list[Any], test: list[Any], kinds: tuple[str, ...]
) -> None:
    write(tmp_path / "x" / "train-0.parquet", train * 10)
    write(tmp_path / "x" / "test-0.parquet", test * 3, seed=90)
    line = refusal(tmp_path / "x")
    assert "test-0.parquet" in line
    assert all(kind in line for kind in kinds)


def test_files_whose_types_hold_the_same_are_read(tmp_path: Path) -> None:
    write(tmp_path / "x" / "train-0.parquet", pa.array([0, 1] * 10, pa.int32()))
    write(tmp_path / "x" / "train-1.parquet", [0, 1] * 10, image=as_struct(pa.binary()), seed=50)
    write(tmp_path / "x" / "test-0.parquet", pa.array([0, 1] * 3, pa.uint8()), seed=90)
    assert store_of(tmp_path / "x", tmp_path).info.counts == {"train": 36, "val": 4, "test": 6}


def test_files_whose_pictures_are_of_other_types(tmp_path: Path) -> None:
    write(tmp_path / "x" / "train-0.parquet", [0, 1] * 10)
    write(tmp_path / "x" / "test-0.parquet", [0, 1], image=lambda _: pa.array(["a.png", "b.png"]))
    assert "test-0.parquet it is string" in refusal(tmp_path / "x")


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (["cat", "dog"], ["dog", "cat"], "the same class names"),
        (["cat", "dog"], ["cat", "dog", "cow"], "the same class names"),
        (["cat", "cat"], ["cat", "cat"], "twice"),
    ],
)
def test_names_of_classes_that_disagree(
    tmp_path: Path, train: list[str], test: list[str], says: str
) -> None:
    for split, names in (("train", train), ("test", test)):
        write(tmp_path / "x" / f"{split}-0.parquet", [0, 1] * 10)
        named(tmp_path / "x" / f"{split}-0.parquet", names)
    assert says in refusal(tmp_path / "x")


@pytest.mark.parametrize("names", [None, "cat", 7, {"a": "cat"}, {"0": "cat", "7": "dog"}, []])
def test_broken_metadata_says_nothing(tmp_path: Path, names: Any) -> None:
    file = write(tmp_path / "x.parquet", [0, 1] * 10)
    named(file, names)
    assert store_of(file, tmp_path).info.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("val", "says"), [(["cow"], "'cow'"), (["Cat", "Dog"], "capitals"), (["cat "], "blanks")]
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_classes_that_train_lacks_are_refused(
    tmp_path: Path, val: list[str], says: str, split: str
) -> None:
    write(tmp_path / "x" / "train-0.parquet", ["cat", "dog"] * 10)
    write(tmp_path / "x" / f"{split}-0.parquet", val * 4, seed=90)
    line = late_refusal(tmp_path / "x", tmp_path)
    assert says in line
    assert "classes of train" in line


def test_classes_that_differ_in_capitals_alone_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "x.parquet", ["cat", "Cat", "dog", "dog "] * 5)
    assert len(store_of(file, tmp_path).info.class_names) == 4
    assert "capitals or blanks alone: 'Cat', 'cat', 'dog', 'dog '" in caplog.text


def test_a_named_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x" / "train-0.parquet", [0, 1] * 10)
    write(tmp_path / "x" / "test-0.parquet", [0, 2] * 3, seed=90)
    for split in ("train", "test"):
        named(tmp_path / "x" / f"{split}-0.parquet", ["cat", "dog", "cow"])
    assert "'cow'" in late_refusal(tmp_path / "x", tmp_path)


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("testset.parquet", "test"),
        ("valset-0.parquet", "val"),
        ("eval.parquet", "val"),
        ("Test.parquet", "test"),
        ("imagesTrain.parquet", "train"),
        ("holdout/0.parquet", "test"),
        ("test_set/0000.parquet", "test"),
    ],
)
def test_splits_of_files_by_other_names(file: str, split: str) -> None:
    assert split_of(Path(file)) == split


def test_files_without_labels_by_their_names_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "x" / "train-0.parquet", ["cat", "dog"] * 10)
    write(tmp_path / "x" / "unsupervised-00000-of-00001.parquet", ["x"] * 10, seed=90)
    assert sum(store_of(tmp_path / "x", tmp_path).info.counts.values()) == 20
    assert "1 files of" in caplog.text


def test_a_split_column_is_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "x.parquet", ["a", "b"] * 10, split=["train", "test"] * 10)
    store_of(tmp_path / "x.parquet", tmp_path)
    assert "the column 'split'" in caplog.text


def test_a_pointer_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "git lfs pull" in refusal(file)


def test_several_pictures_in_a_row_are_refused(tmp_path: Path) -> None:
    def pairs(pictures: Sequence[bytes]) -> pa.Array:
        kind = pa.list_(pa.struct([("bytes", pa.binary())]))
        return pa.array([[{"bytes": p}, {"bytes": p}] for p in pictures], type=kind)

    file = write(tmp_path / "x.parquet", ["a", "b"] * 10, image=pairs)
    assert "a list of 2" in late_refusal(file, tmp_path)


TYPES = {
    "int64": (pa.int64(), (0, 1, 2)),
    "uint8": (pa.uint8(), (0, 1, 2)),
    "string": (pa.string(), ("a", "b", "c")),
    "string_view": (pa.string_view(), ("a", "b", "c")),
    "large_string": (pa.large_string(), ("a", "b", "c")),
    "double": (pa.float64(), (0.0, 1.0, 2.0)),
    "bool": (pa.bool_(), (False, True, True)),
}
GAPS: dict[str, Any] = {"none": None, "null": None, "minus one": -1, "empty": ""}


@given(
    kinds=st.lists(st.sampled_from(sorted(TYPES)), min_size=2, max_size=2),
    image=st.sampled_from([pa.binary(), pa.binary_view(), pa.large_binary()]),
    train=st.lists(st.integers(0, 2), min_size=6, max_size=12),
    test=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    gap=st.sampled_from(sorted(GAPS)),
    skip=st.booleans(),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_types_and_gaps_are_read_right_or_refused(
    tmp_path: Path,
    kinds: list[str],
    image: pa.DataType,
    train: list[int],
    test: list[int],
    gap: str,
    skip: bool,
) -> None:
    root = tmp_path / "any"
    shutil.rmtree(root, ignore_errors=True)
    rows = {}
    for split, kind, labels in zip(("train", "test"), kinds, (train, test), strict=True):
        type_, values = TYPES[kind]
        rows[split] = [values[label] for label in labels]
        if split == "train" and gap != "none":
            fits = isinstance(GAPS[gap], type(values[0])) or gap == "null"
            rows[split].append(GAPS[gap] if fits and kind not in ("uint8", "bool") else None)
        write(root / f"{split}-0.parquet", pa.array(rows[split], type=type_), image=image)
    try:
        read = locate(root, DataSpec(source=str(root), skip_unlabelled=skip)).read()
    except UserError:
        return  # by name: each refusal has its own test
    missing = {None, -1, ""}
    assert gap == "none" or skip
    assert "double" not in kinds
    assert set(read.class_names) == {str(value) for value in rows["train"] if value not in missing}
    for chunk in read.chunks():
        kept = [str(value) for value in rows[chunk.split] if value not in missing]
        assert [read.class_names[label] for label in chunk.labels] == kept


def test_a_store_from_before_a_missing_label_was_known_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "x.parquet", [-1, 0, 1, 0] * 10)
    with monkeypatch.context() as before:
        before.setattr(label_values, "_is_missing", lambda _: False)
        assert store_of(file, tmp_path).info.class_names == ("-1", "0", "1")
    assert "says -1 at row 0" in late_refusal(file, tmp_path)
