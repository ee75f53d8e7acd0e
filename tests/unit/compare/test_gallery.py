"""The report's pictures: the right images, few enough, small enough, and none where they must not
be."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.compare.comparison import Comparison, compare
from orchestrator.compare.mistakes import EACH, Mistakes
from orchestrator.compare.report import gallery
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import collect, load
from tests.unit.compare.compare_runs import tournament_run
from tests.unit.compare.predicted_runs import digits, predicted_run

PICTURE = re.compile(r'<img src="data:image/webp;base64,([^"]+)" alt="([^"]+)">')


def mistakes_of(comparison: Comparison) -> Mistakes:
    assert comparison.by_image is not None
    assert comparison.by_image.mistakes is not None
    return comparison.by_image.mistakes


def test_the_costliest_mistakes_are_those_that_add_most_to_the_loss(tmp_path: Path) -> None:
    run = load(predicted_run(tmp_path))
    mistakes = mistakes_of(compare([run]))
    for candidate in collect([run]):
        read = [final.predictions("test") for final in candidate.curves]
        finals = [one for one in read if one is not None]
        mean = np.mean([one.probabilities for one in finals], axis=0)
        labels = finals[0].labels
        wrong = mean.argmax(1) != labels
        for one in mistakes.classes:
            if one.candidate != candidate.label:
                continue
            own = np.flatnonzero(wrong & (labels == int(one.name)))
            assert one.wrong == own.size
            assert one.images == (labels == int(one.name)).sum()
            costs = mean[own, labels[own]]
            expected = own[np.argsort(costs)][:EACH].tolist()
            assert [example.row for example in one.examples] == expected
    totals = {one.name: 0 for one in mistakes.classes}
    for one in mistakes.classes:
        totals[one.name] += one.wrong
    assert list(totals.values()) == sorted(totals.values(), reverse=True)


def test_disagreements_are_all_counted_and_the_surest_come_first(tmp_path: Path) -> None:
    mistakes = mistakes_of(compare([load(predicted_run(tmp_path))]))
    assert mistakes.num_disagreements >= len(mistakes.disagreements) > 0
    sure = []
    for example in mistakes.disagreements:
        first, second = example.answers
        assert first.predicted != second.predicted
        sure.append(min(first.probability, second.probability))
    assert sure == sorted(sure, reverse=True)


def test_each_picture_is_the_image_that_its_words_speak_of(tmp_path: Path) -> None:
    comparison = compare([load(predicted_run(tmp_path))])
    page = report_html(comparison)
    pictures = PICTURE.findall(page)
    assert len(pictures) >= 5
    _, store = digits(tmp_path / "store")
    assert comparison.by_image is not None
    assert comparison.by_image.suspects is not None
    first = comparison.by_image.suspects.suspects[0]
    picture, alt = pictures[0]
    assert alt == f"{first.split} image labelled {first.label}, suggested {first.suggested}"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), float)
    images = store.split(first.split).images
    distances = [np.abs(shown - np.asarray(images[row], float)).mean() for row in range(180)]
    assert int(np.argmin(distances)) == first.row


def test_a_report_without_images_has_none_and_says_so(tmp_path: Path) -> None:
    comparison = compare([load(predicted_run(tmp_path))])
    page = report_html(comparison, images=False)
    assert "data:image" not in page
    assert "--no-images" in page
    assert "labelled" in page


def test_where_the_store_is_gone_the_images_are_named(tmp_path: Path) -> None:
    folder = predicted_run(tmp_path)
    (tmp_path / "store").rename(tmp_path / "moved")
    page = report_html(compare([load(folder)]))
    assert "data:image" not in page
    assert "the image store is not on this machine" in page


def test_a_page_holds_so_many_pictures_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = compare([load(predicted_run(tmp_path))])
    everything = len(PICTURE.findall(report_html(comparison)))
    monkeypatch.setattr(gallery, "MOST_PICTURES", 3)
    page = report_html(comparison)
    assert len(PICTURE.findall(page)) == 3
    assert f"{everything - 3} images are without a picture" in page.replace("\u00a0", " ")
    monkeypatch.setattr(gallery, "MOST_PICTURES", 240)
    monkeypatch.setattr(gallery, "MOST_BYTES", 1000)
    pictures = PICTURE.findall(report_html(comparison))
    assert 0 < len(pictures) < everything
    assert sum(len(data) for data, _ in pictures) < 1000


def test_a_run_of_before_predictions_has_no_such_sections(tmp_path: Path) -> None:
    page = report_html(compare([load(tournament_run(tmp_path / "run"))]))
    assert 'id="mistakes"' not in page
    assert 'id="classes"' not in page
