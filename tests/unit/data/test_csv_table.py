"""CSV files with a picture a row: read as folders are, whatever program wrote them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.session import data_mistakes
from orchestrator.ledger.state import State
from trainables.config import DataSpec
from trainables.data.build import prepare
from trainables.data.sources import check_source
from trainables.data.store import ImageStore

CLASSES = ("cat", "dog")
VISIBLE = st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp"))
NO_LABELS = ("-1", "nan", "null", "?", "n/a", "<na>", "#n/a")


def pictures(folder: Path, count: int = 40) -> list[str]:
    """``count`` different pictures in ``folder/sub``; their paths below it."""
    draw = np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    names = [f"sub/{number:02d}.png" for number in range(count)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (10, 10, 3), np.uint8)).save(folder / name)
    return names


def rows_of(names: list[str]) -> list[str]:
    return [f"{name},{CLASSES[number % 2]}" for number, name in enumerate(names)]


def spec(folder: Path, **fields: object) -> DataSpec:
    return DataSpec(source=str(folder / "t.csv"), folder=str(folder / "stores"), **fields)  # type: ignore[arg-type]


def write(folder: Path, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    (folder / "t.csv").write_bytes(content)


def mistake(folder: Path, text: str | bytes, **fields: object) -> str:
    write(folder, text)
    (line,) = check_source(spec(folder, **fields))
    assert "\n" not in line
    assert "Fix: " in line
    return line


def labels_by_digest(store: ImageStore) -> dict[int, str]:
    names = store.info.class_names
    return {
        int(digest): names[label]
        for split in ("train", "val", "test")
        for digest, label in zip(store.digests(split), store.labels(split), strict=True)
    }


def test_a_table_is_read_as_a_folder_of_the_same_pictures(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    write(tmp_path, "\n".join(["path,label", *rows_of(names)]))
    for number, name in enumerate(names):
        target = tmp_path / "folder" / CLASSES[number % 2] / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tmp_path / name).read_bytes())
    store = prepare(spec(tmp_path))
    same = prepare(DataSpec(source=str(tmp_path / "folder"), folder=str(tmp_path / "stores")))
    assert store.info.content_hash == same.info.content_hash
    assert store.info.class_counts == same.info.class_counts
    assert (store.info.name, store.info.counts) == ("t", {"train": 32, "val": 4, "test": 4})


@pytest.mark.parametrize("form", ["pixels", "encoded"])
def test_splits_are_called_as_archives_call_them(tmp_path: Path, form: str) -> None:
    names = pictures(tmp_path, 12)
    splits = ["Training", "train", "val2017", "VALID", "test_set", "Testing"] * 2
    lines = [f"{split},{CLASSES[i // 6]},{name}"
             for i, (name, split) in enumerate(zip(names, splits, strict=True))]  # fmt: skip
    write(tmp_path, "\n".join(["split,label,path", *lines]))
    store = prepare(spec(tmp_path, store=form))
    assert store.info.counts == {"train": 4, "val": 4, "test": 4}
    assert store.info.class_counts == dict.fromkeys(("train", "val", "test"), (2, 2))
    first = np.asarray(Image.open(tmp_path / names[0]))
    rows = store.split("train").images[np.arange(4)]
    assert any((row == first).all() for row in rows)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    labels=st.lists(
        st.text(VISIBLE, min_size=1, max_size=8).filter(lambda text: text.lower() not in NO_LABELS),
        min_size=2, max_size=2, unique_by=str.casefold,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    order=st.permutations(["path", "label", "note"]),
)  # fmt: skip
def test_whatever_writes_the_table_the_labels_are_those_written(
    tmp_path: Path, labels: list[str], end: str, bom: bool, quoting: int, order: list[str]
) -> None:
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("sub/*"))
    names = names or pictures(tmp_path, 8)
    text = io.StringIO()
    writer = csv.DictWriter(text, order, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writeheader()
    for number, name in enumerate(names):
        writer.writerow({"path": name, "label": labels[number % 2], "note": 'a "b", c\nd'})
    write(tmp_path, (b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode())
    store = prepare(spec(tmp_path))
    assert sorted(store.info.class_names) == sorted(labels)
    found = labels_by_digest(store)
    assert sorted(found.values()).count(labels[0]) == 4


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    names = pictures(tmp_path, 24)
    lines = [f"{name},{(9, 10, 100)[number % 3]}" for number, name in enumerate(names)]
    write(tmp_path, "\n".join(["file_name,class", *lines]))
    assert prepare(spec(tmp_path)).info.class_names == ("9", "10", "100")


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    names = pictures(tmp_path, 24)
    lines = [f"{name},{row % 2},{CLASSES[row % 2]}" for row, name in enumerate(names)]
    write(tmp_path, "\n".join(["where,code,kind", *lines]))
    chosen = {"image_column": "where", "label_column": "kind"}
    assert prepare(spec(tmp_path, **chosen)).info.class_names == CLASSES
    line = mistake(
        tmp_path, (tmp_path / "t.csv").read_bytes(), image_column="where", label_column="sort"
    )
    assert "data.label_column" in line
    assert "where, code, kind" in line


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["sub/00.png,cat", "sub/01.png,dog"], "no path"),  # no header
        (["path,kind of animal", "sub/00.png,cat"], "no label"),
        (["path;label", "sub/00.png;cat"], "no path"),
        (["path,label,label", "sub/00.png,cat,dog"], "'label' twice"),
        (["path,label"], "training rows"),
        ([], "has none"),
        (["path,label", "sub/00.png,cat,x"], "row 2"),
        (["path,label", "", "sub/00.png,cat", "sub/01.png"], "row 4"),
        (["path,label", "sub/00.png,cat", "sub/77.png,dog", "sub/01.png,dog"], "77.png (row 3)"),
        (["path,label", "sub/00.png,cat", "sub/01.png,", "sub/02.png,dog"], "at row 3"),
        (["path,label", "sub/00.png,cat", "sub/01.png,cat"], "two classes"),
        (["path,label", "sub/00.png,cat", ",dog"], "row 3"),
        (["path,label,split", "sub/00.png,cat,train", "sub/01.png,dog,fold 3"], "'fold 3' (row 3)"),
        (["path,label,split", "sub/00.png,cat,train", "sub/01.png,dog,"], "'' (row 3)"),
        (["path,label,split", "sub/00.png,cat,val", "sub/01.png,dog,test"], "training rows"),
        (["path,label,split", "sub/00.png,a,train", "sub/01.png,b,train", "sub/02.png,c,val"],
         "'c'"),
        (["path,label,group", "sub/00.png,cat,p1", "sub/01.png,dog,"], "row 3"),
        (['path,label', 'sub/00.png,"cat', "sub/01.png,dog"], "readable as CSV"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_name_the_row(
    tmp_path: Path, lines: list[str], expected: str
) -> None:
    pictures(tmp_path, 8)
    assert expected in mistake(tmp_path, "\n".join(lines))


def test_other_encodings_and_other_sources_are_refused(tmp_path: Path) -> None:
    names = pictures(tmp_path, 8)
    text = "\n".join(["path,label", *rows_of(names), "sub/00.png,chätte"])
    assert "UTF-8" in mistake(tmp_path, text.encode("latin-1"))
    assert "UTF-8" in mistake(tmp_path, text.encode("utf-16"))
    (line,) = check_source(DataSpec(source=str(tmp_path), group="patient", image_column="x"))
    assert "data.image_column" in line


def test_corrupt_pictures_are_named_by_row_or_left_out(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    (tmp_path / names[3]).write_text("no picture")
    (tmp_path / names[4]).unlink()
    write(tmp_path, "\n".join(["path,label", *rows_of(names)]))
    assert prepare(spec(tmp_path, skip_corrupt=True)).info.skipped == 2
    Image.new("RGB", (10, 10)).save(tmp_path / names[4])
    with pytest.raises(Exception, match=r"03\.png \(row 5 of t\.csv\)"):
        prepare(spec(tmp_path))


def test_rows_without_a_label_may_be_left_out(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    rows = rows_of(names)
    rows[5] = f"{names[5]},"
    write(tmp_path, "\n".join(["path,label", *rows]))
    store = prepare(spec(tmp_path, skip_unlabelled=True))
    assert sum(store.info.counts.values()) == 39


def test_a_label_or_a_picture_that_changes_is_another_content(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    rows = rows_of(names)
    write(tmp_path, "\n".join(["path,label", *rows]))
    first = prepare(spec(tmp_path))
    again = prepare(spec(tmp_path))
    assert first.path == again.path
    rows[0] = f"{names[0]},dog"
    write(tmp_path, "\n".join(["path,label", *rows]))
    relabelled = prepare(spec(tmp_path))
    Image.new("RGB", (10, 10), "red").save(tmp_path / names[1])
    repainted = prepare(spec(tmp_path))
    hashes = {store.info.content_hash for store in (first, relabelled, repainted)}
    assert len(hashes) == 3
    begun = State(header=RunHeader(datasets={"vit": first.info}))
    assert data_mistakes(begun, {"vit": first.info}, "run") == []
    (line,) = data_mistakes(begun, {"vit": relabelled.info}, "run")
    assert "changed since" in line
