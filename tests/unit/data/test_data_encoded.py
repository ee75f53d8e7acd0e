"""The encoded store against the pixel store of the same source, which is the oracle."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainables.config import DataSpec
from trainables.data import encoded, pictures, writing
from trainables.data.build import prepare, put_stores
from trainables.data.encoded import EncodedImages, lay_out
from trainables.data.sources import check_source
from trainables.data.store import SPLITS, ImageStore, places_file
from trainables.errors import StorageError, UserError

KINDS = ("jpg", "jpg", "png", "turned", "large")


def picture(number: int) -> bytes:
    """A smooth picture of its own size and kind, one in five a JPEG that is decoded at a fraction
    of its size and one that its EXIF turns."""
    generator, kind = np.random.default_rng(number), KINDS[number % len(KINDS)]
    width, height = generator.integers(40, 90, 2) * (4 if kind == "large" else 1)
    coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if kind == "png" else "JPEG", exif=exif)
    return buffer.getvalue()


def write_folder(root: Path, images: int = 120) -> None:
    for number in range(images):
        suffix = "png" if KINDS[number % len(KINDS)] == "png" else "jpg"
        path = root / ("cat", "dog")[number % 7 < 3] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "pets"
    write_folder(folder)
    return folder


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "ROWS_PER_GROUP", 8)


def stores_of(source: Path, folder: Path, **values: Any) -> tuple[ImageStore, ImageStore]:
    """The same images as pixels and encoded."""
    spec = DataSpec(source=str(source), folder=str(folder), short_side=32, **values)
    return prepare(replace(spec, store="pixels")), prepare(replace(spec, store="encoded"))


def assert_same(pixels: ImageStore, other: ImageStore) -> None:
    assert other.info.encoded_bytes is not None
    assert replace(other.info, encoded_bytes=None) == pixels.info
    for name in SPLITS:
        expected, split = pixels.split(name), other.split(name)
        assert isinstance(split.images, EncodedImages)
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(other.digests(name), pixels.digests(name))
        assert split.images.shape == expected.images.shape
        np.testing.assert_array_equal(split.images[:], expected.images)


def test_a_folder_gives_the_same_images_in_both_forms(root: Path, tmp_path: Path) -> None:
    pixels, other = stores_of(root, tmp_path)
    assert_same(pixels, other)
    train, rows = other.split("train").images, np.array([5, 0, 40, 5])
    expected = pixels.split("train").images
    np.testing.assert_array_equal(train[rows], expected[rows])
    np.testing.assert_array_equal(train[3:20:4], expected[3:20:4])
    assert len(train[:0]) == 0


def test_parquet_gives_the_same_images_in_both_forms(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"bytes": picture(n), "path": None} for n in range(60)]
    rows[7] = {"bytes": b"no picture", "path": None}
    rows[30] = {"bytes": None, "path": None}
    column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": column, "label": pa.array([n % 3 for n in range(60)])})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=17)
    pixels, other = stores_of(tmp_path / "photos.parquet", tmp_path / "stores", skip_corrupt=True)
    assert other.info.skipped == 2
    assert_same(pixels, other)


def test_pictures_are_kept_as_the_source_has_them_in_a_plain_arrow_file(
    root: Path, tmp_path: Path
) -> None:
    _, store = stores_of(root, tmp_path)
    kept = []
    for name in SPLITS:
        with pa.memory_map(str(store.path / f"{name}.images.arrow")) as mapped:
            file = pa.ipc.open_file(mapped)
            batches = [file.get_batch(n).column("image") for n in range(file.num_record_batches)]
            assert {len(batch) for batch in batches[:-1]} <= {8}
            kept += [content for batch in batches for content in batch.to_pylist()]
    assert sorted(kept) == sorted(file.read_bytes() for file in root.rglob("*.*"))
    assert store.info.encoded_bytes == sum(map(len, kept))


def test_a_damaged_picture_is_seen_when_it_is_read_and_the_store_is_built_again(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, store = stores_of(root, tmp_path)
    spec = DataSpec(source=str(root), folder=str(tmp_path), short_side=32, store="encoded")
    images = store.split("train").images
    assert isinstance(images, EncodedImages)
    expected, row = images[:], 11
    place = int(images.pictures.offsets[row]) + int(images.pictures.sizes[row]) // 2
    with (store.path / "train.images.arrow").open("r+b") as file:
        file.seek(place)
        file.write(bytes(20))
    damaged = prepare(spec).split("train").images  # its files are as long as they were
    np.testing.assert_array_equal(damaged[:row], expected[:row])
    with pytest.raises(StorageError, match="picture 11 is not what was written"):
        damaged[:]
    caplog.set_level("INFO", logger="trainables")
    np.testing.assert_array_equal(prepare(spec).split("train").images[:], expected)
    assert any("damaged: building it again" in line for line in caplog.messages)


def test_the_limit_decides_and_either_form_is_found_again(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = DataSpec(source=str(root), folder=str(tmp_path), short_side=32)
    assert prepare(spec).info.store_form == "pixels"
    gigabytes = prepare(spec).info.pixel_bytes / 1e9
    below, above = (replace(spec, pixels_at_most_gb=gigabytes * share) for share in (0.99, 1.01))
    assert prepare(below).info.store_form == "encoded"
    assert prepare(above).info.store_form == "pixels"
    caplog.clear()
    caplog.set_level("INFO", logger="trainables")
    assert prepare(below).path == prepare(replace(spec, store="encoded")).path
    assert prepare(above).path == prepare(replace(spec, store="pixels")).path
    assert caplog.messages == []


def test_encoded_pictures_of_a_dataset_that_holds_pixels_are_refused() -> None:
    (mistake,) = check_source(DataSpec(store="encoded"))
    assert "data.store" in mistake
    (mistake,) = check_source(DataSpec(store="jpeg"))
    assert "auto, pixels, encoded" in mistake


def test_a_cut_file_of_pictures_is_built_again(root: Path, tmp_path: Path) -> None:
    pixels, store = stores_of(root, tmp_path)
    with (store.path / "train.images.arrow").open("r+b") as file:
        file.truncate(5000)
    assert_same(pixels, stores_of(root, tmp_path)[1])


def test_what_is_decoded_twice_is_what_stays_in_memory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(source=str(root), folder=str(tmp_path / "a"), short_side=32, store="pixels")
    kept = prepare(spec)
    monkeypatch.setattr(writing, "MOST_KEPT_BYTES", 0)
    again = prepare(replace(spec, folder=str(tmp_path / "b")))
    assert again.info == kept.info
    for name in SPLITS:
        np.testing.assert_array_equal(again.split(name).images, kept.split(name).images)


@pytest.mark.parametrize("form", ["pixels", "encoded"])
def test_no_second_copy_is_on_the_disk_while_a_store_is_built(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    largest = 0

    def on_disk() -> int:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return sum(path.stat().st_blocks * 512 for path in files)

    def noting(function: Any) -> Any:
        def noted(*given: Any, **named: Any) -> Any:
            nonlocal largest
            largest = max(largest, on_disk())
            return function(*given, **named)

        return noted

    monkeypatch.setattr(writing, "MOST_KEPT_BYTES", 0)
    monkeypatch.setattr(pictures, "CHUNK_IMAGES", 16)
    monkeypatch.setattr(writing, "digests_of", noting(writing.digests_of))
    monkeypatch.setattr(writing.os, "pwrite", noting(os.pwrite))
    monkeypatch.setattr(writing, "count_duplicates", noting(writing.count_duplicates))
    spec = DataSpec(source=str(root), folder=str(tmp_path), short_side=64, store=form)
    store = prepare(spec)
    payload = store.info.encoded_bytes or store.info.pixel_bytes
    assert payload <= largest < 1.5 * payload + 100_000


@pytest.mark.parametrize(
    ("form", "other", "side"), [("pixels", "encoded", 40), ("encoded", "pixels", 8)]
)
def test_a_disk_with_room_for_the_other_form_only_says_so(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    other: str,
    side: int,
) -> None:
    encoded_bytes = sum(file.stat().st_size for file in root.rglob("*.*"))
    sizes = {"pixels": 120 * side * side * 3, "encoded": encoded_bytes}
    assert sizes[form] > 1.1 * sizes[other]
    free = (sizes[form] + sizes[other]) // 2 + 2**20 + 120 * writing.INDEX_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    spec = DataSpec(source=str(root), folder=str(tmp_path), short_side=side, store=form)
    with pytest.raises(UserError, match=f"--set data.store={other}"):
        prepare(spec)
    assert prepare(replace(spec, store=other)).info.store_form == other


def test_a_source_that_changes_while_it_is_read_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "pets"
    shutil.copytree(root, source)
    count = writing.count_duplicates

    def meddling(*given: Any) -> Any:
        os.utime(next(source.rglob("*.png")), ns=(1, 1))
        return count(*given)

    monkeypatch.setattr(writing, "count_duplicates", meddling)
    with pytest.raises(UserError, match="has changed"):
        stores_of(source, tmp_path / "stores")
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]


# --- threads ------------------------------------------------------------------------------------


def test_blocks_come_in_order_whatever_the_threads(root: Path, tmp_path: Path) -> None:
    pixels, store = stores_of(root, tmp_path)
    images, expected = store.split("train").images, pixels.split("train").images
    assert isinstance(images, EncodedImages)
    blocks = [np.random.default_rng(n).integers(0, len(images), 1 + 3 * n) for n in range(8)]
    for threads in (1, 3):
        decoded = list(images.ahead(blocks, threads))
        assert len(decoded) == len(blocks)
        for rows, block in zip(blocks, decoded, strict=True):
            np.testing.assert_array_equal(block, expected[rows])


def test_no_more_is_decoded_ahead_than_said(root: Path, tmp_path: Path) -> None:
    images = stores_of(root, tmp_path)[1].split("train").images
    assert isinstance(images, EncodedImages)
    asked = 0

    def blocks() -> Iterator[Any]:
        nonlocal asked
        for start in range(0, 64, 4):
            asked += 1
            yield np.arange(start, start + 4)

    decoded = images.ahead(blocks(), 2)
    next(decoded)
    assert asked == 1 + encoded.BLOCKS_AHEAD
    decoded.close()  # type: ignore[attr-defined]


# --- object storage -----------------------------------------------------------------------------


@pytest.fixture
def remote(root: Path, tmp_path: Path, place: str, quick_storage: None) -> tuple[DataSpec, str]:
    """A spec of encoded images, and a run that keeps its store in object storage."""
    spec = DataSpec(source=str(root), folder=str(tmp_path / "head"), short_side=32, store="encoded")
    put_stores(f"{place}/run", {spec: prepare(spec)})
    return replace(spec, folder=str(tmp_path / "node")), f"{place}/run"


def present(store: ImageStore, split: str) -> list[int]:
    return np.flatnonzero(np.fromfile(store.path / f"{split}.present", np.uint8)).tolist()


def test_a_node_fetches_the_row_groups_that_it_uses(
    root: Path, tmp_path: Path, remote: tuple[DataSpec, str]
) -> None:
    spec, run = remote
    pixels, whole = stores_of(root, tmp_path / "oracle")
    store = prepare(spec, remote=run)
    assert store.info == whole.info
    assert present(store, "train") == []
    rows = np.array([33, 34, 9])
    images, expected = store.split("train").images, pixels.split("train").images
    np.testing.assert_array_equal(images[rows], expected[rows])
    assert present(store, "train") == [1, 4]
    file = store.path / "train.images.arrow"
    assert file.stat().st_size == (whole.path / file.name).stat().st_size
    # Another process of the node opens it anew, and finds what is there.
    again = prepare(spec, remote=run)
    assert again.path == store.path
    np.testing.assert_array_equal(again.split("train").images[:], expected)
    assert len(present(store, "train")) == -(-len(expected) // 8)
    shutil.rmtree(run.removeprefix("file://").rpartition("/")[0])
    np.testing.assert_array_equal(again.split("train").images[:], expected)


def test_a_picture_damaged_in_the_storage_is_told(remote: tuple[DataSpec, str]) -> None:
    spec, run = remote
    store = prepare(spec, remote=run)
    origin = json.loads((store.path / "origin.json").read_text())["uri"].removeprefix("file://")
    path = Path(origin) / "train.images.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="other checksums"):
        store.split("train").images[:]


def test_a_part_of_a_store_is_not_taken_for_the_whole(
    root: Path, remote: tuple[DataSpec, str]
) -> None:
    spec, run = remote
    part, whole = prepare(spec, remote=run), prepare(spec)
    assert part.path != whole.path
    assert not (whole.path / "origin.json").exists()


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 8, 9, 30])
def test_the_layout_leaves_each_picture_its_place(tmp_path: Path, count: int) -> None:
    sizes = np.random.default_rng(count).integers(1, 500, count)
    offsets = lay_out(tmp_path / "x.arrow", sizes)
    contents = [bytes([1 + row % 255]) * int(size) for row, size in enumerate(sizes)]
    with (tmp_path / "x.arrow").open("r+b") as file:
        for offset, content in zip(offsets.tolist(), contents, strict=True):
            file.seek(offset)
            file.write(content)
    with pa.memory_map(str(tmp_path / "x.arrow")) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    assert table["image"].to_pylist() == contents


@pytest.mark.parametrize("form", ["pixels", "encoded"])
def test_every_row_says_which_file_it_is(root: Path, tmp_path: Path, form: str) -> None:
    data = DataSpec(source=str(root), folder=str(tmp_path), store=form, test_fraction=0.2)
    store, seen = prepare(data), []
    for split in SPLITS:
        places, images = store.places(split), store.split(split).images
        assert places is not None
        for row, (place, label) in enumerate(zip(places, store.labels(split), strict=True)):
            assert place.partition("/")[0] == store.info.class_names[label]
            expected = pictures.decode(root / place, store.info.height)
            assert (np.asarray(images[np.array([row])])[0] == expected).all()
        seen += places
    files = [file.relative_to(root).as_posix() for file in root.rglob("*.*")]
    assert sorted(seen) == sorted(files)


def test_a_store_of_an_earlier_version_has_no_places(root: Path, tmp_path: Path) -> None:
    store = prepare(DataSpec(source=str(root), folder=str(tmp_path)))
    places_file(store.path, "test").unlink()
    assert store.places("test") is None
    assert prepare(DataSpec(source=str(root), folder=str(tmp_path))) == store
