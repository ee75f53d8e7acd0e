"""Image folders: layouts, sizes, modes, orientation, and each mistake as one line."""

import os

import numpy as np
import pytest
from PIL import Image

from trainables.config import DataSpec
from trainables.data.build import prepare
from trainables.data.pictures import decode
from trainables.data.sources import check_source
from trainables.errors import UserError

GREEN, RED = (0, 200, 0), (200, 0, 0)


def picture(path, size=(20, 20), colour=None, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = abs(hash(str(path))) % 2**32
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    if colour is not None:
        pixels[:] = colour
    Image.fromarray(pixels).convert(mode).save(path, **options)


def classes(root, names=("cat", "dog"), count=10, **options):
    for name in names:
        for index in range(count):
            picture(root / name / f"{index}.png", **options)


def store_of(root, tmp_path, **spec):
    return prepare(DataSpec(source=str(root), folder=str(tmp_path / "stores"), **spec))


def mistake_of(root, tmp_path, **spec):
    """The one mistake that prepare ends with; nothing but locks may be left behind."""
    with pytest.raises(UserError) as caught:
        store_of(root, tmp_path, **spec)
    (mistake,) = caught.value.mistakes
    assert "\n" not in mistake
    assert "Fix:" in mistake
    stores = tmp_path / "stores"
    assert not stores.exists() or all(path.suffix == ".lock" for path in stores.iterdir())
    return mistake


def test_pictures_of_one_size_are_stored_as_they_are(tmp_path):
    root = tmp_path / "pets"
    classes(root, size=(20, 20))
    store = store_of(root, tmp_path)
    assert (store.info.height, store.info.width, store.info.channels) == (20, 20, 3)
    assert store.info.name == "pets"
    assert store.info.class_names == ("cat", "dog")
    assert store.info.counts == {"train": 16, "val": 2, "test": 2}
    assert store.info.mirror_safe
    stored = {
        (image.tobytes(), int(label))
        for name in ("train", "val", "test")
        for image, label in zip(*vars(store.split(name)).values(), strict=True)
    }
    expected = {
        (np.asarray(Image.open(file)).tobytes(), ("cat", "dog").index(file.parent.name))
        for file in root.rglob("*.png")
    }
    assert stored == expected


def test_many_sizes_and_modes_become_one_square(tmp_path):
    root = tmp_path / "mixed"
    for name in ("a", "b"):
        for index, mode in enumerate(("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")):
            suffix = "jpg" if mode == "CMYK" else "png"
            file = root / name / f"{index}.{suffix}"
            if mode == "I;16":
                wide = np.full((40, 50), 128 << 8, dtype=np.uint16)
                Image.fromarray(wide).save(file)
            else:
                picture(file, size=(30 + 7 * index, 90 - 5 * index), mode=mode)
    store = store_of(root, tmp_path, val_fraction=0.2, test_fraction=0.2)
    assert store.info.height == store.info.width == 40, "the median, 44, cut to a multiple of 8"
    assert sum(store.info.counts.values()) == 16


@pytest.mark.parametrize(
    ("size", "short_side", "stored"),
    [((100, 80), None, 64), ((100, 80), 32, 32), ((100, 80), 72, 72), ((48, 33), 64, 33)],
)
def test_larger_pictures_are_stored_at_the_chosen_short_side(tmp_path, size, short_side, stored):
    classes(tmp_path / "big", size=size, count=4)
    store = store_of(tmp_path / "big", tmp_path, short_side=short_side)
    assert store.info.height == store.info.width == stored


def test_the_centre_is_kept_and_orientation_applied(tmp_path):
    pixels = np.zeros((40, 120, 3), dtype=np.uint8)
    pixels[:, :40], pixels[:, 40:80], pixels[:, 80:] = RED, GREEN, RED
    pixels[:10, 40:80] = (0, 0, 200)  # blue on top
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    plain, turned = decode(tmp_path / "plain.png", 40), decode(tmp_path / "turned.png", 40)
    np.testing.assert_array_equal(plain, pixels[:, 40:80])
    np.testing.assert_array_equal(turned, np.rot90(pixels[:, 40:80], -1))


@pytest.mark.parametrize(
    ("size", "side"), [((50, 50), 64), ((90, 64), 224), ((61, 97), 40), ((500, 375), 224)]
)
def test_pictures_are_resized_as_pil_does_it(tmp_path, size, side):
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "x.png")
    short = min(size)
    left, top = (width - short) // 2, (height - short) // 2
    square = picture.crop((left, top, left + short, top + short))
    expected = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    difference = abs(decode(tmp_path / "x.png", side) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.02


@pytest.mark.parametrize(("stored", "shown"), [(100 << 8, 100), (200, 0), (65535, 255)])
def test_sixteen_bit_grey_keeps_its_brightness(tmp_path, stored, shown):
    Image.fromarray(np.full((8, 8), stored, dtype=np.uint16)).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", 8) == shown).all()


@pytest.mark.filterwarnings("error")
def test_a_palette_with_alpha_is_read_without_a_warning(tmp_path):
    picture(tmp_path / "x.png", size=(8, 8), mode="P", transparency=bytes(range(256)))
    expected = Image.open(tmp_path / "x.png").convert("RGBA").convert("RGB")
    np.testing.assert_array_equal(decode(tmp_path / "x.png", 8), np.asarray(expected))


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_given_splits_are_kept(tmp_path, val):
    root = tmp_path / "split"
    classes(root / "train", colour=(10, 10, 10))
    classes(root / val, colour=(20, 20, 20), count=3)
    classes(root / "test", colour=(30, 30, 30), count=2)
    store = store_of(root, tmp_path)
    assert store.info.counts == {"train": 20, "val": 6, "test": 4}
    for name, value in (("train", 10), ("val", 20), ("test", 30)):
        assert (store.split(name).images == value).all()


def test_a_missing_test_split_is_carved_from_train(tmp_path, caplog):
    classes(tmp_path / "x" / "train")
    classes(tmp_path / "x" / "val", count=3)
    (tmp_path / "x" / "test").mkdir()
    caplog.set_level("INFO", logger="trainables")
    store = store_of(tmp_path / "x", tmp_path)
    assert store.info.counts == {"train": 18, "val": 6, "test": 2}
    assert any("test is not used" in line for line in caplog.messages)


def test_a_class_may_be_called_train(tmp_path):
    classes(tmp_path / "vehicles", names=("bus", "train"))
    assert store_of(tmp_path / "vehicles", tmp_path).info.class_names == ("bus", "train")


def test_other_files_are_counted_and_hidden_ones_passed_over(tmp_path, caplog):
    root = tmp_path / "x"
    classes(root)
    for name in ("notes.txt", "cat/Thumbs.db", "cat/.hidden.png"):
        (root / name).write_text("no picture")
    (root / ".git").mkdir()
    (root / "empty").mkdir()
    caplog.set_level("INFO", logger="trainables")
    store = store_of(root, tmp_path)
    assert sum(store.info.counts.values()) == 20
    assert any(line.startswith("2 files ignored") for line in caplog.messages)
    assert any("are no class: empty" in line for line in caplog.messages)


def test_links_are_followed_and_circles_end(tmp_path):
    classes(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(tmp_path / "real" / "cat")
    classes(tmp_path / "linked", names=("dog",))
    (tmp_path / "linked" / "dog" / "again").symlink_to(tmp_path / "linked" / "dog")
    assert sum(store_of(tmp_path / "linked", tmp_path).info.counts.values()) == 20


def test_a_changed_file_gives_a_new_store(tmp_path):
    root = tmp_path / "x"
    classes(root)
    first = store_of(root, tmp_path)
    assert store_of(root, tmp_path).path == first.path
    picture(root / "cat" / "0.png", colour=GREEN)
    os.utime(root / "cat" / "0.png", ns=(1, 1))  # file clocks may be coarse
    second = store_of(root, tmp_path)
    assert second.path != first.path
    assert second.info.content_hash != first.info.content_hash


def test_a_corrupt_picture_is_refused_by_path_or_skipped_and_counted(tmp_path):
    root = tmp_path / "x"
    classes(root)
    cut = root / "cat" / "3.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (root / "dog" / "fake.jpg").write_text("not a picture at all")
    (root / "dog" / "empty.jpg").write_bytes(b"")
    mistake = mistake_of(root, tmp_path)
    assert str(cut) in mistake
    assert "--set data.skip_corrupt=true" in mistake
    store = store_of(root, tmp_path, skip_corrupt=True)
    assert store.info.skipped == 3
    assert sum(store.info.counts.values()) == 19


def test_many_corrupt_pictures_are_counted_not_listed(tmp_path):
    classes(tmp_path / "x")
    for index in range(10):
        (tmp_path / "x" / "dog" / f"{index}.png").write_text("no")
    assert "and 7 more" in mistake_of(tmp_path / "x", tmp_path)


def test_one_readable_class_is_not_enough(tmp_path):
    classes(tmp_path / "x")
    for index in range(10):
        (tmp_path / "x" / "dog" / f"{index}.png").write_text("no")
    assert "two classes" in mistake_of(tmp_path / "x", tmp_path, skip_corrupt=True)


def make_empty(root):
    root.mkdir()


def make_flat(root):
    picture(root / "1.png")


def make_one_class(root):
    classes(root, names=("cat",))


def make_strange_class_in_val(root):
    classes(root / "train")
    classes(root / "val", names=("cat", "cow"))


def make_no_train(root):
    classes(root / "test")
    classes(root / "val")


def make_too_few(root):
    classes(root, count=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_empty, "one folder per class"),
        (make_flat, "one folder per class"),
        (make_one_class, "at least two classes"),
        (make_strange_class_in_val, "'cow'"),
        (make_no_train, "needs train/"),
        (make_too_few, "too few images"),
    ],
)
def test_mistakes(tmp_path, make, says):
    make(tmp_path / "x")
    assert says in mistake_of(tmp_path / "x", tmp_path)
    if make is not make_too_few:  # which needs the images read
        assert says in check_source(DataSpec(source=str(tmp_path / "x")))[0]
