"""CIFAR archives in all official forms, tiny; their pickles are read as data, and none is run."""

import io
import os
import pickle
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.config import DataSpec
from trainables.data import cifar
from trainables.data.build import prepare
from trainables.data.cifar import FORMS
from trainables.data.pickled_arrays import UnreadablePickle, load_arrays
from trainables.data.sources import KNOWN_DATASETS, check_source
from trainables.errors import UserError

PER_FILE = 20


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2's ``str``, and numpy's old module, as the archives have."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_str


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch_of(form, seed):
    """(rows (N, 3072) channel-first, fine labels) of one file."""
    rng = np.random.default_rng(seed)
    classes = 10 if form.dataset == "cifar10" else 100
    labels = [i % 10 * (classes // 10) for i in range(PER_FILE)]
    return rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8), labels


def contents(form, dumps=python2_pickle):
    """{file name: bytes} of a tiny archive in the official format."""
    classes = 10 if form.dataset == "cifar10" else 100
    names = [f"class_{i}" for i in range(classes)]
    files = {}
    for seed, member in enumerate((*form.train, form.test)):
        rows, labels = batch_of(form, seed)
        if form.binary:
            head = np.array(labels, dtype=np.uint8)[:, None]
            if form.dataset == "cifar100":
                head = np.hstack([head // 5, head])  # coarse, then fine
            files[member] = np.hstack([head, rows]).tobytes()
        else:
            values = {"batch_label": member, form.labels_key: labels, "data": rows}
            if form.dataset == "cifar100":
                values["coarse_labels"] = [label // 5 for label in labels]
            files[member] = dumps(values)
    if form.binary:
        files[form.names] = ("\n".join(names) + "\n\n").encode()
    else:
        files[form.names] = dumps({form.names_key: names, "num_cases_per_batch": PER_FILE})
    files["readme.html"] = b"<html></html>"
    return files


def pack(form, folder, files=None, name=None):
    path = folder / (name or form.archive)
    with tarfile.open(path, "w:gz") as tar:
        top = tarfile.TarInfo(form.folder)
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for member, data in (files or contents(form)).items():
            info = tarfile.TarInfo(f"{form.folder}/{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def unpack(form, folder, files=None):
    path = folder / form.folder
    path.mkdir()
    for member, data in (files or contents(form)).items():
        (path / member).write_bytes(data)
    return path


def spec_of(form, archive, tmp_path):
    return DataSpec(
        source=form.dataset, archive=str(archive), folder=str(tmp_path / "stores"), val_fraction=0.2
    )


def mistake_of(spec):
    with pytest.raises(UserError) as caught:
        prepare(spec)
    (mistake,) = caught.value.mistakes
    assert "\n" not in mistake
    assert "Fix:" in mistake
    return mistake


form_ids = [form.folder for form in FORMS]


@pytest.mark.parametrize("place", ["packed", "renamed", "unpacked", "parent", "parent of packed"])
@pytest.mark.parametrize("form", FORMS, ids=form_ids)
def test_each_form_gives_its_images_and_labels(tmp_path, form, place):
    if place == "packed":
        archive = pack(form, tmp_path)
    elif place == "renamed":
        archive = pack(form, tmp_path, name="download.bin")
    elif place == "parent of packed":
        archive = pack(form, tmp_path).parent
    else:
        unpacked = unpack(form, tmp_path)
        archive = unpacked if place == "unpacked" else unpacked.parent
    spec = spec_of(form, archive, tmp_path)
    assert check_source(spec) == []
    store = prepare(spec)
    train = PER_FILE * len(form.train)
    val = max(10, round(0.2 * train))  # an image of each class
    assert store.info.counts == {
        "train": train - val,
        "val": val,
        "test": PER_FILE,
    }
    assert store.info.name == form.dataset
    assert store.info.class_names[7] == "class_7"
    rows, labels = batch_of(form, len(form.train))
    expected = {
        (row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(), label)
        for row, label in zip(rows, labels, strict=True)
    }
    split = store.split("test")
    stored = {(i.tobytes(), int(y)) for i, y in zip(split.images, split.labels, strict=True)}
    assert stored == expected


def test_forms_and_places_agree_on_content(tmp_path):
    hashes = set()
    for form in (form for form in FORMS if form.dataset == "cifar10"):
        store = prepare(spec_of(form, unpack(form, tmp_path), tmp_path))
        hashes.add(store.info.content_hash)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "dumps",
    [
        python2_pickle,
        lambda value: pickle.dumps(value, protocol=0),
        lambda value: pickle.dumps(value, protocol=2),
        lambda value: pickle.dumps(value, protocol=5),
        lambda value: pickle.dumps({k.encode(): v for k, v in value.items()}, protocol=4),
    ],
    ids=["python 2", "protocol 0", "protocol 2", "protocol 5", "bytes keys"],
)
def test_pickles_of_each_age_are_read(dumps):
    rows, labels = batch_of(FORMS[0], 0)
    values = load_arrays(dumps({"data": rows, "labels": labels}))
    np.testing.assert_array_equal(values["data"], rows)
    assert values["labels"] == labels


class Runs:
    """A pickle of this runs a command when it is read by the standard unpickler."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_names_code_is_refused_unrun(tmp_path):
    form = FORMS[0]
    evil = pickle.dumps({"data": Runs(f"touch {tmp_path}/ran"), "labels": []}, protocol=2)
    for archive in (
        unpack(form, tmp_path, {**contents(form), "data_batch_2": evil}),
        pack(form, tmp_path, {**contents(form), "data_batch_2": evil}),
    ):
        mistake = mistake_of(spec_of(form, archive, tmp_path))
        assert "system is not admitted" in mistake
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)
    assert (tmp_path / "ran").exists(), "the same bytes run where nothing guards"


@pytest.mark.parametrize(
    "value",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"}U\x04datacnumpy\nndarray\nI4\n\x85Rs.",  # a call, which once read out of bounds
        b"}U\x04datacnumpy\nndarray\ns.",
        pickle.dumps([1, 2]),
        b"",
        b"\x80\x02}q\x00(U\x04data",
    ],
)
def test_other_pickles_are_refused(value):
    with pytest.raises(UnreadablePickle):
        load_arrays(value)


def state_of_array(shape, dtype, content):
    """A pickle whose ``data`` is an array of this shape over these bytes, whatever they are."""
    made = python2_pickle({"data": np.zeros(3, np.uint8)})
    state = pickle.dumps(((1, shape, None, False, content),), protocol=2)[2:-1]
    head, _, _ = made.partition(b"(K\x01K\x03")
    name = b"U" + bytes([len(dtype)]) + dtype.encode()
    kind = b"cnumpy\ndtype\n" + name + b"K\x00K\x01\x87R"
    assert state.count(b"N") == 1
    # Pickled as a tuple's only item: what comes before that tuple's own opcode is the state.
    body = state.replace(b"N", kind).rpartition(b"\x85")[0]
    return head + body + b"bs."


@pytest.mark.parametrize(
    ("shape", "dtype", "content"),
    [
        ((2**40,), "u1", "abc"),
        ((-3, -1), "u1", "abc"),
        ((2,), "u1", "abc"),
        ((3, 2**62, 4), "u1", "abc"),
        ((3,), "O8", "a" * 24),
        ((3,), "V1", "abc"),
        ((1,) * 40, "u1", "a"),
    ],
)
def test_an_array_is_exactly_its_bytes(shape, dtype, content):
    with pytest.raises(UnreadablePickle, match="array"):
        load_arrays(state_of_array(shape, dtype, content))
    right = load_arrays(state_of_array((3,), "u1", "abc"))["data"]
    np.testing.assert_array_equal(right, np.frombuffer(b"abc", np.uint8))


def test_tuples_in_each_other_are_only_read():
    deep = b"}U\x04data" + b")" + b"\x85" * 200_000 + b"s."
    assert type(load_arrays(deep)["data"]) is tuple
    with pytest.raises(UnreadablePickle, match="key"):  # hashing it would end the process
        load_arrays(b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.")


def test_lists_that_repeat_themselves_are_refused_at_once(tmp_path):
    form = FORMS[0]
    # A list that holds one list ten times, and that another, twelve deep: 10^12 numbers.
    lists = b"U\x01a](" + b"K\x01" * 10 + b"eq\x64s"
    for level in range(101, 112):
        lists += b"U\x01a](" + bytes([ord("h"), level - 1]) * 10 + b"eq" + bytes([level]) + b"s"
    rows = python2_pickle({"data": np.zeros((1, 3072), np.uint8)})[:-1]
    labels = b"U\x06labels](" + b"h\x6f" * 10 + b"es."
    files = {**contents(form), "data_batch_1": rows + lists + labels}
    mistake = mistake_of(spec_of(form, unpack(form, tmp_path, files), tmp_path))
    assert "a label that is no whole number" in mistake


def test_codecs_other_than_latin1_are_refused():
    bad = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    with pytest.raises(UnreadablePickle, match="rot13"):
        load_arrays(bad)


def test_the_wrong_archive_is_refused(tmp_path):
    cifar10, cifar100 = FORMS[0], FORMS[2]
    for archive in (pack(cifar100, tmp_path), unpack(cifar100, tmp_path)):
        spec = spec_of(cifar10, archive, tmp_path)
        assert "must be an archive of cifar10" in mistake_of(spec)
        assert check_source(spec)
    (tmp_path / "text.tar.gz").write_text("no archive")
    for archive in (tmp_path / "text.tar.gz", tmp_path / "none.tar.gz"):
        assert "data.archive must" in mistake_of(spec_of(cifar10, archive, tmp_path))


@pytest.mark.parametrize("form", FORMS, ids=form_ids)
def test_a_cut_archive_is_refused(tmp_path, form):
    archive = pack(form, tmp_path)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    assert "cannot be read" in mistake_of(spec_of(form, archive, tmp_path))


@pytest.mark.parametrize("form", FORMS, ids=form_ids)
def test_files_of_another_shape_are_refused(tmp_path, form):
    files = contents(form)
    if form.binary:
        files[form.train[0]] = files[form.train[0]][:-1]
    else:
        files[form.train[0]] = python2_pickle({"data": np.zeros((2, 5), np.uint8), "labels": [0]})
    assert "cannot be read" in mistake_of(spec_of(form, unpack(form, tmp_path, files), tmp_path))


@pytest.mark.parametrize("form", FORMS[:2], ids=form_ids[:2])
def test_a_batch_that_ends_early_between_two_rows_is_refused(tmp_path, form):
    files = contents(form)
    rows, labels = batch_of(form, 3)
    if form.binary:
        files[form.train[3]] = files[form.train[3]][: 5 * 3073]
    else:
        files[form.train[3]] = python2_pickle({"data": rows[:5], "labels": labels[:5]})
    mistake = mistake_of(spec_of(form, unpack(form, tmp_path, files), tmp_path))
    assert f"{form.train[3]} has 5 images, {form.train[0]} has {PER_FILE}" in mistake


def test_a_label_without_a_name_is_refused(tmp_path):
    form = FORMS[1]
    files = {**contents(form), form.names: b"only\ntwo\n"}
    mistake = mistake_of(spec_of(form, unpack(form, tmp_path, files), tmp_path))
    assert "a label outside [0, 1]" in mistake


def test_an_unpacked_archive_given_as_a_folder_of_images_is_recognised(tmp_path):
    folder = unpack(FORMS[0], tmp_path)
    (mistake,) = check_source(DataSpec(source=str(folder)))
    assert f"--dataset cifar10 --set data.archive={folder}" in mistake


def test_a_mirror_must_be_http(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_CIFAR_URL", "file:///etc")
    assert "ORCHESTRATOR_CIFAR_URL" in mistake_of(DataSpec(source="cifar10", folder=str(tmp_path)))
    monkeypatch.delenv("ORCHESTRATOR_CIFAR_URL")
    official = KNOWN_DATASETS["cifar10"].url
    assert cifar.base_url(official) == official == "https://www.cs.toronto.edu/~kriz"


STRAYS = (
    "._{folder}",
    "{folder}/._{member}",
    "{folder}/old/{member}",
    "{folder}/Thumbs.db",
    "backup/{member}",
)


def answer_of(form, archive, folder):
    """All (pixels, label) that an archive gives by split, or the mistake it is refused with."""
    try:
        store = prepare(spec_of(form, archive, folder))
    except UserError as error:
        (mistake,) = error.mistakes
        return mistake
    stored = {}
    for name in ("train", "val", "test"):
        split = store.split(name)
        pairs = zip(split.images, split.labels, strict=True)
        stored[name] = sorted((image.tobytes(), int(label)) for image, label in pairs)
    return {"train": sorted(stored["train"] + stored["val"]), "test": stored["test"]}


def official(form, members):
    """The same of files with these contents, by the batches that they were made of."""
    rows, labels = zip(*(batch_of(form, seed) for seed in members), strict=True)
    pixels = np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return sorted(
        (image.tobytes(), label)
        for image, label in zip(pixels, [one for each in labels for one in each], strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    strays=st.sets(st.sampled_from(STRAYS)),
    packing=st.sampled_from(["", "w", "w:gz", "w:bz2", "w:xz"]),
    prefix=st.sampled_from(["", "./"]),
    damage=st.sampled_from(["none", "none", "gone", "cut", "empty"]),
    data=st.data(),
)
def test_an_archive_is_read_right_or_refused_by_name(form, strays, packing, prefix, damage, data):
    files = contents(form)
    victim = data.draw(st.sampled_from(form.members))
    if damage == "gone":
        del files[victim]
    elif damage in ("cut", "empty"):
        files[victim] = b"" if damage == "empty" else files[victim][: len(files[victim]) * 2 // 3]
    named = {f"{form.folder}/{member}": content for member, content in files.items()}
    for stray in strays:  # each would be read as a file of the archive by a careless reader
        member = data.draw(st.sampled_from(form.members))
        named[stray.format(folder=form.folder, member=member)] = contents(form)[form.train[0]]
    order = data.draw(st.permutations(list(named)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if packing:
            archive = folder / "archive"
            with tarfile.open(archive, packing) as tar:
                for name in order:
                    info = tarfile.TarInfo(prefix + name)
                    info.size = len(named[name])
                    tar.addfile(info, io.BytesIO(named[name]))
        else:
            archive = folder / "unpacked"
            for name, content in named.items():
                (archive / name).parent.mkdir(parents=True, exist_ok=True)
                (archive / name).write_bytes(content)
        answer = answer_of(form, archive, folder)
    if damage == "none":
        test = len(form.train)
        assert answer == {
            "train": official(form, range(test)),
            "test": official(form, [test]),
        }
    else:
        assert isinstance(answer, str), damage
        assert str(archive) in answer
        assert "Fix:" in answer
