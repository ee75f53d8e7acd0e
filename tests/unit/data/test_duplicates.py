"""Images that are there more than once: counted, named, and on one side of every carve."""

import io
import json
import logging
import shutil
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from orchestrator.cli.main import main
from tests.unit.data.test_data_cifar import contents, pack
from trainables.config import DatasetFacts, DataSpec
from trainables.data import duplicates
from trainables.data.build import prepare
from trainables.data.cifar import FORMS
from trainables.data.duplicates import (
    NEAR_BITS,
    PAIRS,
    SplitImages,
    count_duplicates,
    near_rows,
    perceptual_hashes,
    sentences,
)
from trainables.data.store import assign_splits, carve, open_store, stratified_order

NOTHING = {"train": 0, "val": 0, "test": 0}


def pictures(count, side=16, seed=0):
    """Coarse random pictures, of which no two are alike."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(side // 8, 1).repeat(side // 8, 2)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def store_of(root, tmp_path, **spec):
    asked = {"val_fraction": 0.2, "test_fraction": 0.2, **spec}
    return prepare(DataSpec(source=str(root), folder=str(tmp_path / "stores"), **asked))


def test_copies_in_a_folder_stay_on_one_side_and_are_named(tmp_path):
    root = tmp_path / "pets"
    for index, pixels in enumerate(pictures(60)):
        write(root / ("cat", "dog")[index % 2] / f"{index}.png", pixels)
        if index < 20:
            write(root / ("cat", "dog")[index % 2] / f"copy of {index}.png", pixels)
    write(root / "dog" / "no cat.png", pictures(60)[0])
    for seed in range(5):
        store = store_of(root, tmp_path, split_seed=seed)
        assert store.info.counts == {"train": 49, "val": 16, "test": 16}
        sides = defaultdict(set)
        for split in store.info.counts:
            for digest in store.digests(split).tolist():
                sides[digest].add(split)
        assert all(len(splits) == 1 for splits in sides.values())
        counted = store.info.duplicates
        assert (counted.groups, counted.images, counted.mislabelled) == (20, 41, 1)
        assert set(counted.between.values()) == {0}
        assert sum(counted.within.values()) == 21
        first = counted.examples[0]  # of several classes, hence before the others
        assert first.images == 3
        assert {(copy.place, copy.label) for copy in first.copies} == {
            ("cat/0.png", "cat"), ("cat/copy of 0.png", "cat"), ("dog/no cat.png", "dog"),
        }  # fmt: skip
        for copy in first.copies:
            images = store.split(copy.split).images
            np.testing.assert_array_equal(images[copy.row], pictures(60)[0])


def test_a_leak_between_the_sources_own_splits_is_named_and_left(tmp_path, caplog):
    root, same = tmp_path / "leaky", pictures(40)
    for split, rows in {"train": range(30), "test": [*range(3), *range(30, 40)]}.items():
        for row in rows:
            write(root / split / ("cat", "dog")[row % 2] / f"{row}.png", same[row])
    caplog.set_level(logging.INFO, "trainables")
    store = store_of(root, tmp_path)
    assert store.info.counts == {"train": 24, "val": 6, "test": 13}
    counted = store.info.duplicates
    assert counted.between["test/train"] + counted.between["test/val"] == 3
    assert counted.within == NOTHING
    places = {frozenset(copy.place for copy in group.copies) for group in counted.examples}
    names = [f"{('cat', 'dog')[row % 2]}/{row}.png" for row in range(3)]
    assert places == {frozenset((f"train/{name}", f"test/{name}")) for name in names}
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "own splits share images" in warning
    assert "Fix:" in warning


def test_copies_in_parquet_and_near_ones_in_its_test_file(tmp_path):
    same = pictures(40, side=32)

    def encoded(pixels, **options):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, **options)
        return file.getvalue()

    train = [encoded(pixels, format="PNG") for pixels in same[:30]]
    test = [encoded(same[4], format="PNG"), encoded(same[5], format="JPEG", quality=80)]
    test += [encoded(pixels, format="PNG") for pixels in same[30:]]
    for name, images in {"train": train, "test": test}.items():
        (tmp_path / "set").mkdir(exist_ok=True)
        labels = [row % 2 for row in range(len(images))]
        table = pa.table({"image": pa.array(images, pa.binary()), "label": labels})
        pq.write_table(table, tmp_path / "set" / f"{name}-0.parquet")
    store = store_of(tmp_path / "set", tmp_path)
    counted = store.info.duplicates
    assert counted.between["test/train"] + counted.between["test/val"] == 1
    assert counted.near["test/train"] + counted.near["test/val"] == 1
    (group,) = counted.examples
    assert [copy.place for copy in group.copies if copy.split == "test"] == ["test-0.parquet row 0"]
    assert "train-0.parquet row 4" in [copy.place for copy in group.copies]


def test_copies_in_a_cifar_archive(tmp_path):
    form = next(form for form in FORMS if form.folder == "cifar-10-batches-bin")
    files, row_bytes = contents(form), 3073
    first = bytearray(files["test_batch.bin"])
    first[:row_bytes] = files["data_batch_2.bin"][5 * row_bytes : 6 * row_bytes]
    files["test_batch.bin"] = bytes(first)
    archive = pack(form, tmp_path, files)
    store = prepare(
        DataSpec(source="cifar10", archive=str(archive), folder=str(tmp_path / "stores"))
    )
    (group,) = store.info.duplicates.examples
    assert {copy.place for copy in group.copies} == {
        "data_batch_2.bin row 5",
        "test_batch.bin row 0",
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare(DataSpec(folder=str(tmp_path_factory.mktemp("stores"))))


def test_digits_are_carved_as_ever(digits):
    # Of the version before copies were looked for: runs of then resume, and compare.
    assert digits.info.content_hash == "7030868753678829"
    assert (digits.info.duplicates.groups, digits.info.duplicates.examples) == (0, ())


def carved_before(labels, digests, *, count, seed, salt):
    """The carve of that version: all but the last image of each class, in the stratified order.
    Later ones never leave a class out that can spare an image."""
    order = stratified_order(labels, digests, seed=seed, salt=salt)
    last = {labels[row]: row for row in order}
    spare = [row for row in order if row != last[labels[row]]]
    return spare[: max(count, len({labels[row] for row in spare}))]


copies = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=4, max_size=60)


def rows_of(groups, mislabelled, seed):
    """Labels and digests of ``groups``, each a class and how many copies; of some, one copy has
    another class."""
    draw = np.random.default_rng(seed)
    labels = np.repeat([label for label, _ in groups], [size for _, size in groups])
    digests = np.repeat(
        draw.integers(0, 2**64, len(groups), dtype=np.uint64), [size for _, size in groups]
    )
    wrong = draw.random(len(labels)) < mislabelled
    labels[wrong] = (labels[wrong] + 1) % 4
    order = draw.permutation(len(labels))
    return labels[order].astype(np.int64), digests[order]


@settings(deadline=None, max_examples=200)
@given(copies, st.sampled_from([0.0, 0.1]), st.integers(0, 2**32), st.floats(0.05, 0.5))
def test_no_carve_splits_a_group_and_the_share_is_as_asked(groups, mislabelled, seed, share):
    labels, digests = rows_of(groups, mislabelled, seed)
    count = max(1, round(share * len(labels)))
    chosen = carve(labels, digests, count=count, seed=seed, salt="val")
    left = np.setdiff1d(np.arange(len(labels)), chosen)
    assert len(set(chosen)) == len(chosen)
    assert not set(digests[chosen]) & set(digests[left])
    assert set(labels[left]) == set(labels)
    largest = np.unique(digests, return_counts=True)[1].max()
    assert len(chosen) < count + 4 * largest  # a class may need one more group to be there
    if len(chosen) < count:  # then nothing could be spared: each group left holds a class's last
        again = carve(labels, digests, count=len(labels), seed=seed, salt="val")
        assert set(again) == set(chosen)


@settings(deadline=None)
@given(st.lists(st.integers(30, 80), min_size=2, max_size=4), st.integers(0, 2**32),
       st.floats(0.1, 0.4), st.integers(1, 3))  # fmt: skip
def test_a_carve_of_copies_is_stratified(sizes, seed, share, most):
    draw = np.random.default_rng(seed)
    groups = [
        (label, int(draw.integers(1, most + 1))) for label, size in enumerate(sizes)
        for _ in range(size)
    ]  # fmt: skip
    labels, digests = rows_of(groups, 0.0, seed)
    count = round(share * len(labels))
    chosen = carve(labels, digests, count=count, seed=seed, salt="val")
    assert len(chosen) in range(count, count + most)
    in_class = np.bincount(labels[chosen], minlength=len(sizes))
    # Each class may be ahead by one group, for which all are behind by their share.
    bound = most * np.maximum(1, len(sizes) * np.bincount(labels) / len(labels)) + 2
    assert (np.abs(in_class - share * np.bincount(labels)) <= bound).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**40), st.data())
def test_without_copies_the_carve_is_the_one_it_was(sizes, seed, data):
    labels, digests = rows_of([(c, 1) for c, n in enumerate(sizes[:4]) for _ in range(n)], 0, seed)
    count = data.draw(st.integers(1, len(labels)))
    asked = {"count": count, "seed": seed, "salt": "val"}
    assert carve(labels, digests, **asked).tolist() == carved_before(labels, digests, **asked)


def test_a_group_larger_than_the_split_stays_in_train():
    digests = np.r_[np.zeros(50), np.arange(1, 51)].astype(np.uint64)
    labels = np.r_[np.zeros(50), np.arange(50) % 2].astype(np.int64)
    for seed in range(10):
        assigned = assign_splits(
            {"train": labels}, {"train": digests}, DataSpec(split_seed=seed, val_fraction=0.1)
        )
        assert {name: len(rows) for name, (_, rows) in assigned.items()} == {
            "train": 80,
            "val": 10,
            "test": 10,
        }


def counted_one_by_one(splits):
    """Reference: what :func:`count_duplicates` counts, by dictionaries."""
    where = defaultdict(list)
    for name, part in splits.items():
        for label, digest in zip(part.labels.tolist(), part.digests.tolist(), strict=True):
            where[digest].append((name, label))
    repeated = [images for images in where.values() if len(images) > 1]
    return {
        "groups": len(repeated),
        "images": sum(map(len, repeated)),
        "mislabelled": sum(len({label for _, label in images}) > 1 for images in repeated),
        "within": {
            name: sum(max(0, [n for n, _ in images].count(name) - 1) for images in repeated)
            for name in splits
        },
        "between": {
            f"{one}/{other}": sum(
                [n for n, _ in images].count(one)
                for images in repeated
                if {one, other} <= {n for n, _ in images}
            )
            for one, other in PAIRS
        },
    }


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), max_size=15),
                min_size=3, max_size=3))  # fmt: skip
def test_counts_are_those_of_a_dictionary(parts):
    splits = {}
    for name, part in zip(NOTHING, parts, strict=True):
        labels = np.array([label for label, _ in part], dtype=np.int64)
        digests = np.array([digest for _, digest in part], dtype=np.uint64)
        splits[name] = SplitImages(labels, digests, digests)
    counted = count_duplicates(splits, ("a", "b", "c"))
    assert {**counted_one_by_one(splits)}.items() <= vars(counted).items()
    for group in counted.examples:
        digests = {int(splits[copy.split].digests[copy.row]) for copy in group.copies}
        assert len(digests) == 1
        assert len(group.copies) == min(group.images, duplicates.COPIES_NAMED)
    assert len(counted.examples) == min(counted.groups, duplicates.EXAMPLES)
    assert DatasetFacts.from_dict(
        json.loads(json.dumps(DatasetFacts(height=8, width=8, duplicates=counted).as_dict()))
    ).duplicates == counted  # fmt: skip


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 7, 2**21]))
def test_near_hashes_are_those_of_all_pairs(seed, at_once):
    draw = np.random.default_rng(seed)
    others = draw.integers(0, 2**64, 40, dtype=np.uint64)
    others[:10] &= np.uint64(0xFFFF)  # many in one bucket
    hashes = np.r_[others[:30], draw.integers(0, 2**64, 10, dtype=np.uint64), np.uint64(0)]
    for row in range(30):
        for bit in draw.choice(64, draw.integers(0, 7), replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    apart = np.bitwise_count(hashes[:, None] ^ others[None])
    real = (np.bitwise_count(hashes) > 1)[:, None] & (np.bitwise_count(others) > 1)[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "COMPARED_AT_ONCE", at_once)
        found = near_rows(hashes, others)
    np.testing.assert_array_equal(found, ((apart <= NEAR_BITS) & real).any(axis=1))


@pytest.mark.parametrize("side", [8, 16, 33, 64])
def test_perceptual_hashes_are_the_signs_of_scipys_transform(side):
    images = np.random.default_rng(side).integers(0, 256, (20, side, side, 3), dtype=np.uint8)
    grey = images.astype(float) @ np.array([0.299, 0.587, 0.114])
    waves = dctn(grey, axes=(1, 2))[:, :8, :8].reshape(20, 64) / 4
    above = waves - np.median(waves[:, 1:], axis=1, keepdims=True)
    bits = np.unpackbits(perceptual_hashes(images).astype(">u8").view(np.uint8).reshape(20, 8), 1)
    clear = np.abs(above) > 1  # what is nearer depends on rounding
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(bits[clear], above[clear] > 0)


def test_what_a_picture_goes_through_leaves_it_near_and_another_one_is_not():
    digits_like = pictures(60, side=32, seed=3)
    hashes = perceptual_hashes(digits_like)
    assert not near_rows(hashes[:30], hashes[30:]).any()

    def again(pixels, **options):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, **options)
        return np.asarray(Image.open(file))

    def smaller(pixels):
        picture = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)
        return np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC))

    changes = {
        "compressed": [again(pixels, format="JPEG", quality=75) for pixels in digits_like],
        "resized": [smaller(pixels) for pixels in digits_like],
        "darker": (digits_like * 0.85).astype(np.uint8),
    }
    for name, changed in changes.items():
        share = near_rows(perceptual_hashes(np.array(changed)), hashes).mean()
        assert share > 0.9, name
    blank = np.full((3, 32, 32, 3), [[[[0]]], [[[120]]], [[[255]]]], dtype=np.uint8)
    assert not near_rows(perceptual_hashes(blank), perceptual_hashes(blank)).any()


def test_the_test_splits_hash_is_of_its_images_and_labels_alone(tmp_path):
    root, same = tmp_path / "own", pictures(50)

    def folder(name, train, test, classes=("cat", "dog")):
        for split, rows in (("train", train), ("test", test)):
            for row in rows:
                path = tmp_path / name / split / classes[row % 2] / f"{name}{row}.png"
                write(path, same[row])
        return store_of(tmp_path / name, tmp_path).info

    first = folder("own", range(30), range(30, 40))
    assert first.test_hash is not None
    for spec in ({"val_seed": 3}, {"train_limit": 5}, {"val_fraction": 0.3}, {"split_seed": 2}):
        assert store_of(root, tmp_path, **spec).info.test_hash == first.test_hash
    more = folder("more", [*range(30), *range(40, 50)], range(30, 40))
    assert more.content_hash != first.content_hash
    assert more.test_hash == first.test_hash
    write(tmp_path / "more" / "train" / "ape" / "x.png", same[0])
    assert store_of(tmp_path / "more", tmp_path).info.test_hash == first.test_hash
    assert folder("swapped", range(30), range(30, 40), ("dog", "cat")).test_hash != first.test_hash
    assert folder("fewer", range(30), range(30, 39)).test_hash != first.test_hash


def test_a_store_of_an_earlier_version_is_sealed_and_says_how_to_count(digits, tmp_path, capsys):
    shutil.copytree(digits.path, tmp_path / digits.path.name)
    copy = tmp_path / digits.path.name
    record = json.loads((copy / "info.json").read_text())
    for key in ("test_hash", "duplicates"):
        del record["info"][key]
    (copy / "info.json").write_text(json.dumps(record))
    old = open_store(copy)
    assert old.info == replace(digits.info, duplicates=None)

    def asked():
        with pytest.raises(SystemExit):
            main(["data", "info", "digits", "--set", f"data.folder={tmp_path}"])
        return capsys.readouterr().out

    assert f"rm -r {copy}" in asked()
    shutil.rmtree(copy)
    said = asked()
    assert all(line in said for line in sentences(digits.info.duplicates))
    assert digits.info.test_hash in said
