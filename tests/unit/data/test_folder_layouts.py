"""What people have on disk: layouts that are no class folders, strays, links, ranges of values.

Each situation is of a kind, and other members of the kind stand beside it. Read right or refused by
name: a split is never a class, and a class never vanishes.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.config import DataSpec
from trainables.data.build import prepare
from trainables.data.folders import locate
from trainables.data.pictures import decode
from trainables.data.sources import check_source
from trainables.data.split_names import split_of_folder
from trainables.data.store import ImageStore, Source
from trainables.errors import UserError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def picture(path: Path, seed: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, zlib.crc32(str(path).encode())))
    image = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    image.save(path, **options)


def classes(root: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> None:
    for name in names:
        for index in range(count):
            picture(root / name / f"{index}.png")


def store_of(root: Path, tmp_path: Path, **spec: object) -> ImageStore:
    return prepare(DataSpec(source=str(root), folder=str(tmp_path / "stores"), **spec))


def refusal(root: Path, **spec: object) -> str:
    """The one line that the source is refused with before an image is read."""
    (line,) = check_source(DataSpec(source=str(root), **spec))
    assert "\n" not in line
    assert "Fix: " in line
    return line


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("Training", "Testing"),
        ("TRAIN", "TEST"),
        ("train_images", "test_images"),
        ("imagesTrain", "imagesTest"),
        ("train2017", "test2017"),
        ("train/images", "test/images"),
        ("trainset", "testset"),
        ("dataset-train", "dataset-test"),
    ],
)
def test_splits_by_other_names_are_splits(tmp_path: Path, train: str, test: str) -> None:
    classes(tmp_path / "x" / train)
    classes(tmp_path / "x" / test, count=3)
    store = store_of(tmp_path / "x", tmp_path)
    assert store.info.class_names == ("cat", "dog")
    assert store.info.counts == {"train": 18, "val": 2, "test": 6}


@pytest.mark.parametrize("name", ["eval", "dev", "valid", "validation_set", "val2017"])
def test_names_of_validation_splits(name: str) -> None:
    assert split_of_folder(name) == "val"


@pytest.mark.parametrize(
    "name", ["trains", "train_station", "contest", "testudo", "value", "train-test", "trainer", "1"]
)
def test_names_that_are_of_no_split(name: str) -> None:
    assert split_of_folder(name) is None


@pytest.mark.parametrize(
    "folders",
    [
        ("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"),
        ("a/cat", "a/dog", "b/cat", "b/dog"),
        ("a/Cat", "a/Dog", "b/cat", "b/dog"),
        ("fold1", "fold2", "fold3"),
        ("part-01", "part-02"),
        ("train", "test"),  # pictures without class folders
        ("train", "valid", "test"),
        ("train", "test", "sample"),
        ("cat/train", "cat/test", "dog/train", "dog/test"),
        ("cat/images", "cat/masks", "dog/images", "dog/masks"),
        ("train/cat", "train/dog", "training/cat", "training/dog"),
        ("train/cat", "train/dog", "bus"),  # is train a split, or a class beside bus?
        ("test/cat", "test/dog", "cat", "dog"),
        ("cat", "dog", "unlabeled"),
        ("cat", "dog", "unsup"),
        ("-1", "0", "1"),
        ("train/train", "train/test"),
        ("train", "test", "unlabelled"),
        ("split_0/cat", "split_0/dog", "split_1/cat", "split_1/dog"),
        ("train/fold1", "train/fold2"),
        ("pets/train/cat", "pets/test/cat", "birds/train/owl", "birds/test/owl"),
    ],
)
def test_what_is_no_class_is_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        classes(tmp_path / "x", names=(folder,), count=2)
    line = refusal(tmp_path / "x")
    assert any(part in line for folder in folders for part in folder.split("/"))


@pytest.mark.parametrize("above", ["dataset", "images", "archive/pets", "data/raw"])
def test_a_folder_too_high_names_the_one_below(tmp_path: Path, above: str) -> None:
    classes(tmp_path / "x" / above)
    assert f"--dataset {tmp_path / 'x' / above}" in refusal(tmp_path / "x")
    classes(tmp_path / "y" / above / "train")
    classes(tmp_path / "y" / above / "val", count=2)
    assert f"--dataset {tmp_path / 'y' / above}" in refusal(tmp_path / "y")


def test_a_folder_too_deep_names_the_one_above(tmp_path: Path) -> None:
    classes(tmp_path / "x")
    assert f"--dataset {tmp_path / 'x'}," in refusal(tmp_path / "x" / "cat")


def test_layouts_that_look_like_others_are_read_as_before(tmp_path: Path) -> None:
    for name in ("cat/2019", "cat/2020", "dog/2019", "dog/2020"):  # by date, below the class
        classes(tmp_path / "dates", names=(name,), count=5)
    assert store_of(tmp_path / "dates", tmp_path).info.class_names == ("cat", "dog")
    for name in ("n01/images", "n02/images"):
        classes(tmp_path / "nested", names=(name,))
    assert store_of(tmp_path / "nested", tmp_path).info.class_names == ("n01", "n02")
    classes(tmp_path / "signs", names=("bus", "train", "test_tube"))
    assert len(store_of(tmp_path / "signs", tmp_path).info.class_names) == 3


@pytest.mark.parametrize(("val", "hint"), [("Cat", "capitals"), ("cat ", "blanks"), ("cow", "cow")])
def test_classes_of_val_must_be_those_of_train(tmp_path: Path, val: str, hint: str) -> None:
    classes(tmp_path / "x" / "train")
    classes(tmp_path / "x" / "val", names=(val, "dog"), count=2)
    line = refusal(tmp_path / "x")
    assert repr(val) in line
    assert hint in line


def test_classes_that_differ_in_capitals_alone_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes(tmp_path / "x", names=("cat", "Cat", "dog"))
    assert len(store_of(tmp_path / "x", tmp_path).info.class_names) == 3
    assert "capitals or blanks alone: 'Cat', 'cat'" in caplog.text


STRAYS = (
    ".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "notes.txt", "labels.json", "boxes.xml",
    "README", "list.csv", "0.png~", "x.log", "LICENSE",
)  # fmt: skip


def test_strays_are_no_pictures_and_junk_folders_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "x"
    classes(root)
    for name in STRAYS:
        (root / name).write_text("stray")
        (root / "cat" / name).write_text("stray")
    for junk in ("__MACOSX/cat", "@eaDir", ".ipynb_checkpoints", "cat/@eaDir/0.png"):
        picture(root / junk / "thumb.jpg")
    caplog.set_level(logging.INFO, logger="trainables")
    store = store_of(root, tmp_path)
    assert store.info.class_names == ("cat", "dog")
    assert sum(store.info.counts.values()) == 20
    assert "20 files ignored" in caplog.text


def test_loose_pictures_and_those_that_are_not_read_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "x"
    classes(root)
    picture(root / "loose.png")
    for name in ("a.heic", "b.HEIC", "c.npy"):
        (root / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic")
    store_of(root, tmp_path)
    assert "1 pictures beside the class folders" in caplog.text
    assert "3 files of" in caplog.text
    assert "2 .heic" in caplog.text


@pytest.mark.parametrize("suffix", [".heic", ".jxl", ".dcm", ".npy", ".zip"])
@pytest.mark.parametrize("split", ["", "train", "test"])
def test_a_class_that_would_vanish_is_refused(tmp_path: Path, suffix: str, split: str) -> None:
    root = tmp_path / "x"
    if split:
        classes(root / "train", names=("cat", "dog", "cow"), count=3)
        classes(root / "test", names=("cat", "dog"), count=3)
        shutil.rmtree(root / split / "cow", ignore_errors=True)
    else:
        classes(root)
    (root / split / "cow").mkdir()
    (root / split / "cow" / f"1{suffix}").write_bytes(b"something")
    line = refusal(root)
    assert str(root / split / "cow") in line
    assert suffix in line


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("1.jfif", "JPEG"),
        ("1.JPEG", "JPEG"),
        ("1.JPG", "JPEG"),
        ("1.jpe", "JPEG"),
        ("1", "JPEG"),
        ("IMG.0001", "PNG"),
        ("1.jpg_large", "WEBP"),
        ("1.avif", "AVIF"),
        ("1.gif", "GIF"),
        ("1.ppm", "PPM"),
        ("1.pbm", "PPM"),
        ("1.tif", "TIFF"),
        ("1.jp2", "JPEG2000"),
        ("1.dib", "BMP"),
        ("wrong-suffix.jpg", "PNG"),
    ],
)
def test_formats_that_pillow_reads_are_read(tmp_path: Path, name: str, kind: str) -> None:
    root = tmp_path / "x"
    classes(root)
    for index in range(3):
        path = root / "cow" / f"{index}-{name}"
        picture(path, format=kind)
    store = store_of(root, tmp_path)
    assert store.info.class_names == ("cat", "cow", "dog")
    assert sum(store.info.counts.values()) == 23


def dangling(file: Path) -> None:
    file.symlink_to("/data/not/mounted/17.png")


def annexed(file: Path) -> None:
    file.symlink_to(f"../.git/annex/objects/Xq/{file.name}")


def lfs(file: Path) -> None:
    file.write_text(LFS)


def annex_text(file: Path) -> None:
    file.write_text("/annex/objects/MD5E-s1234--abc.png\n")


def dvc(file: Path) -> None:
    file.with_name(file.name + ".dvc").write_text("outs:\n- md5: abc\n  path: 17.png\n")


def web_page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html><title>Sign in</title></html>")


ABSENT = {
    dangling: "a link to /data/not/mounted/17.png",
    annexed: "git annex get",
    lfs: "git lfs pull",
    annex_text: "git annex get",
    dvc: "dvc pull",
    web_page: "a web page",
}


@pytest.mark.parametrize("make", ABSENT)
def test_files_that_stand_for_others_are_named_or_left_out(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    root = tmp_path / "x"
    classes(root)
    make(root / "cat" / "17.png")
    with pytest.raises(UserError) as caught:
        store_of(root, tmp_path)
    (line,) = caught.value.mistakes
    assert str(root / "cat" / "17.png") in line
    assert ABSENT[make] in line
    store = store_of(root, tmp_path, skip_corrupt=True)
    assert store.info.skipped == 1
    assert sum(store.info.counts.values()) == 20


@pytest.mark.parametrize("make", ABSENT)
def test_a_class_of_nothing_but_pointers_does_not_vanish(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    root = tmp_path / "x"
    classes(root)
    (root / "cow").mkdir()
    for index in range(3):
        make(root / "cow" / f"{index}.png")
    with pytest.raises(UserError, match=r"must not vanish.*cow"):
        store_of(root, tmp_path, skip_corrupt=True)


def test_pointers_without_a_suffix_are_no_notes(tmp_path: Path) -> None:
    root = tmp_path / "x"
    classes(root)
    (root / "cow").mkdir()
    (root / "cow" / "0001").write_text(LFS)
    (root / "cat" / "CHECKSUMS").write_text("0.png 1234")
    assert str(root / "cow") in refusal(root)
    shutil.rmtree(root / "cow")
    (root / "tools").mkdir()
    (root / "tools" / "crop.cpp").write_text("int main() {}")
    (root / "notes.txt").symlink_to("/nowhere/notes.txt")
    assert store_of(root, tmp_path).info.class_names == ("cat", "dog")


@pytest.mark.parametrize("place", ["dog", "test", "train"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_class_or_split_that_is_not_mounted_is_refused(
    tmp_path: Path, place: str, skip: bool
) -> None:
    root = tmp_path / "x"
    classes(root, names=("ant", "cat", "cow"))
    (root / place).symlink_to("/data/not/mounted")
    assert str(root / place) in refusal(root, skip_corrupt=skip)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    classes(tmp_path / "x")
    os.mkfifo(tmp_path / "x" / "cat" / "pipe.png")
    assert sum(store_of(tmp_path / "x", tmp_path).info.counts.values()) == 20


LAYOUTS = {
    "splits": ("train", "val", "test"),
    "kaggle": ("training_set", "validation_set", "test_set"),
    "seg": ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
    "capitals": ("Training", "Valid", "Testing"),
    "plain": ("",),
    "folds": ("fold1", "fold2", "fold3"),
    "strange": ("one", "two"),
    "above": ("pets/train", "pets/val"),
}
SUFFIXES = ("a.png", "b.JPG", "c.jpeg", "d.webp", "e", "f.tif")


def located(root: Path) -> Source | None:
    """The source, or ``None`` where it is refused."""
    with suppress(UserError):
        return locate(root, DataSpec(source=str(root)))
    return None


@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    names=st.lists(
        st.sampled_from(["cat", "dog", "Cow", "ant 1", "épi"]), min_size=2, max_size=4, unique=True
    ),
    suffixes=st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=3, unique=True),
    strays=st.lists(st.sampled_from(STRAYS), max_size=4, unique=True),
    unread=st.booleans(),
    without=st.booleans(),
)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_layout_is_read_right_or_refused(
    tmp_path: Path,
    layout: str,
    names: list[str],
    suffixes: list[str],
    strays: list[str],
    unread: bool,
    without: bool,
) -> None:
    root = tmp_path / "any"
    shutil.rmtree(root, ignore_errors=True)
    for split in LAYOUTS[layout]:
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for suffix in suffixes:
                (folder / suffix).write_bytes(b"\xff\xd8\xff\xe0")  # by name or by first bytes
            for stray in strays:
                (folder / stray).write_text("stray")
    last = root / LAYOUTS[layout][-1] / names[-1]
    if unread:
        (last / "x.heic").write_bytes(b"heic")
    if without:  # nothing that is read is left of one class
        for suffix in suffixes:
            (last / suffix).unlink()
    vanishes = unread and without
    source = located(root)
    if source is None:
        assert layout in ("folds", "strange", "above") or without
        return
    assert layout not in ("folds", "above")
    assert not vanishes
    entries = source.identity()[1:]
    files = [Path(entry[0]) for entry in entries if len(entry) == 3]
    expected = len(LAYOUTS[layout]) * len(names) * len(suffixes) - without * len(suffixes)
    assert len(files) == expected
    read = source.read()
    assert set(read.class_names) <= set(names)
    assert set(read.class_names) == {file.parent.name for file in files}


def grey(values: np.ndarray, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
EXPECTED = np.rint(RAMP * 255).astype(int)


@pytest.mark.parametrize(
    ("values", "name", "white"),
    [
        (RAMP.astype(np.float32), "x.tif", None),
        ((RAMP * 65535).astype(np.uint16), "x.png", None),
        ((RAMP * 65535).astype(np.uint16), "x.tif", None),
        ((RAMP * 65535).astype(np.int32), "x.tif", None),
        ((RAMP * 255).astype(np.int32), "x.tif", None),
        ((RAMP * 4095).astype(np.uint16), "x.png", 4095.0),
        ((RAMP * 16383).astype(np.uint16), "x.tif", 16383.0),
        ((RAMP * 1e6).astype(np.int32), "x.tif", 1e6),
        ((RAMP * 255).astype(np.float32), "x.tif", 255.0),
        ((RAMP * 255).astype(np.uint8), "x.png", None),
    ],
)
def test_values_are_scaled_by_the_range_of_their_kind(
    tmp_path: Path, values: np.ndarray, name: str, white: float | None
) -> None:
    pixels = decode(grey(values, tmp_path / name), 8, white).astype(int)
    assert abs(pixels - EXPECTED[..., None]).max() <= 1


def test_white_may_be_zero(tmp_path: Path) -> None:
    path = grey((RAMP * 65535).astype(np.uint16), tmp_path / "x.tif", tiffinfo={262: 0})
    assert abs(decode(path, 8).astype(int) - (255 - EXPECTED)[..., None]).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        (RAMP * 255).astype(np.float32),
        (RAMP * 2 - 1).astype(np.float32),
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
        (RAMP * 1e6).astype(np.int32),
        (RAMP * 2000 - 1000).astype(np.int32),
        (RAMP * 4095).astype(np.uint16),
        (RAMP * 1023).astype(np.int32),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    for name, factor in (("flat", 1), ("half", 0.5)):
        for index in range(5):
            some = values.copy()
            some[0, :2] = values.flat[index] * factor
            grey(some, tmp_path / "x" / name / f"{index}.tif")
    for skip in (False, True):  # whole pictures are not left out as corrupt ones
        with pytest.raises(UserError, match=r"--set data\.white=VALUE"):
            store_of(tmp_path / "x", tmp_path, skip_corrupt=skip)


def test_colours_of_twelve_bits_in_sixteen_are_refused(tmp_path: Path) -> None:
    import struct

    def png16(values: np.ndarray) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            body = kind + data
            return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
        data = chunk(b"IDAT", zlib.compress(rows))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        for index in range(6):
            pixels = png16(rng.integers(0, 4096, (8, 8, 3)))
            (tmp_path / "x" / name / f"{index}.png").write_bytes(pixels)
    with pytest.raises(UserError, match="nearly black"):
        store_of(tmp_path / "x", tmp_path)


def test_broken_metadata_does_not_matter_where_the_picture_is_whole(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    expected = decode(whole, 16)
    text = b"tEXt" + b"comment\0hello"
    broken = len(text[4:]).to_bytes(4) + text + b"\0\0\0\0"  # the checksum is wrong
    at = 8 + 25  # behind IHDR
    np.testing.assert_array_equal(decode(whole[:at] + broken + whole[at:], 16), expected)
    picture(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*garbage that is no directory")
    picture(tmp_path / "y.jpg")
    assert decode(tmp_path / "x.jpg", 16).shape == (16, 16, 3)
    with pytest.raises(Exception, match=r"cannot identify|truncated"):
        decode(whole[:at] + broken + whole[at:-40], 16)
