"""Who is on the shortlist, who cannot be told from its last, who is on the front, who is drawn."""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from orchestrator.cli.main import group
from orchestrator.compare.shortlist import (
    NOT_REACHED,
    bits_of,
    shortlist,
    shortlist_of,
    shortlist_text,
    write_shortlist,
)
from orchestrator.ledger import session
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import RunStatus
from orchestrator.ops.status import summary, view
from orchestrator.ray_cluster import attach
from orchestrator.screen import run
from orchestrator.screen.run import images_in_time, name_mistakes
from tests.unit.screen.screens import FOUND, IMAGES, screened, spec, write
from trainables.config import BackboneSpec, DatasetFacts, DataSpec, Screened
from trainables.data.store import ImageStore
from trainables.errors import UserError


def test_the_best_are_chosen_and_who_is_as_good_is_named() -> None:
    result = shortlist(spec(FOUND), FOUND, {"g": "larger than was asked for"})
    assert [row.label for row in result.ranked] == ["a", "b", "c", "d", "e"]
    assert result.chosen == ("a", "b")
    assert [other.label for other in result.not_told_apart] == ["c"]
    assert result.front is None
    assert result.audited == ()
    assert (result.failed, set(result.left_out)) == (("f",), {"f", "g"})
    assert result.exit_code == 4
    low, high = proportion_confint(390, IMAGES, method="wilson")
    assert (result.ranked[0].top1.low, result.ranked[0].top1.high) == pytest.approx((low, high))


def test_limits_leave_out_and_show_the_front() -> None:
    result = shortlist(spec(FOUND, max_latency_ms=40.0), FOUND, {})
    assert result.chosen == ("a", "b")
    assert result.front == ("a", "b", "d")  # c is beaten by b, e is too slow
    assert {row.label: row.beyond for row in result.ranked if row.beyond} == {
        "e": "50 ms an image, more than 40"
    }
    slow = shortlist(spec(FOUND, max_latency_ms=22.0), FOUND, {})
    assert slow.chosen == ("b", "d")
    assert shortlist(spec(FOUND, max_params_m=1.0), FOUND, {}).chosen == ()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_nobody_beats_the_front_and_the_front_beats_all_others(
    points: list[tuple[int, int]], top: int
) -> None:
    found = {
        f"c{i}": screened(f"c{i}", right, latency_ms=latency)
        for i, (right, latency) in enumerate(points)
    }
    result = shortlist(spec(found, max_latency_ms=1e6, top=top), found, {})
    assert result.front is not None

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] >= other[0] and one[1] <= other[1] and one != other

    of = dict(zip(found, points, strict=True))
    for label, point in of.items():
        if label in result.front:
            assert not any(beats(other, point) for other in of.values())
        else:
            front = [of[other] for other in result.front]
            assert any(beats(other, point) or other == point for other in front)


def test_the_audit_is_drawn_by_the_seed_from_those_screened_out() -> None:
    found = {f"c{i:02}": screened(f"c{i:02}", 380 - 3 * i) for i in range(22)}
    asked = spec(found, audit=0.25)
    result = shortlist(asked, found, {})
    assert len(result.audited) == 5
    assert not set(result.audited) & set(result.chosen)
    assert shortlist(asked, found, {}).audited == result.audited
    other = replace(asked, data=DataSpec(split_seed=1))
    assert shortlist(other, found, {}).audited != result.audited


def test_bits_survive_json() -> None:
    found = Screened.from_dict(json.loads(json.dumps(FOUND["c"].as_dict())))
    assert found == FOUND["c"]
    assert bits_of(found).sum() == 378


def test_what_is_written_and_printed(tmp_path: Path) -> None:
    result = shortlist(spec(FOUND, max_latency_ms=40.0, audit=0.5), FOUND, {})
    document = json.loads(write_shortlist(result, tmp_path).read_text())
    assert document["schema"] == 1
    assert document["shortlist"] == ["a", "b"]
    assert document["candidates"][0]["linear_top1"]["mean"] == 390 / IMAGES
    assert document["candidates"][0]["backbone"]["model"] == "a"
    text = shortlist_text(result)
    assert "* shortlist: a, b\n" in text
    assert "failed: f: OutOfMemory: no room" in text
    assert f"judged by {IMAGES} validation images" in text


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(1e-5, 2)), min_size=1, max_size=30),
    st.floats(0, 7200),
    st.integers(1, 5000),
    st.integers(1, 100_000),
    st.integers(1, 500),
)
def test_the_images_that_fit_the_time_fit_it(
    costs: list[tuple[float, float]], seconds: float, val: int, most: int, least: int
) -> None:
    images = images_in_time(costs, seconds=seconds, val=val, most=most, least=least)
    assert 1 <= min(least, most) <= images <= most
    planned = sum(setup_s + (val + images) * image_s for setup_s, image_s in costs)
    if images > min(least, most):
        assert planned <= seconds
    more = images_in_time(costs, seconds=2 * seconds, val=val, most=most, least=least)
    assert more >= images


def test_a_ledger_gives_back_what_was_screened(tmp_path: Path) -> None:
    asked = spec(FOUND, storage=str(tmp_path))
    assert name_mistakes(asked) == []
    write(tmp_path / "s", asked, *FOUND.values())
    state = session.state_of(tmp_path / "s")
    assert state.header.screen == asked
    assert (state.screen.train_images, state.screen.screened) == (77, FOUND)
    assert state.screen.failed() == {"f": "OutOfMemory: no room"}
    so_far = shortlist_of(state)
    assert not so_far.ended
    assert replace(so_far, ended=True) == shortlist(asked, FOUND, {})
    assert "has not ended" in shortlist_text(so_far)


def test_a_candidate_that_was_left_out_has_the_reason_on_record(tmp_path: Path) -> None:
    asked = spec(FOUND, max_latency_ms=40.0)
    found = [one for label, one in FOUND.items() if label not in "de"]
    write(tmp_path / "s", asked, *found)
    with closing(Ledger(tmp_path / "s" / "ledger.jsonl")) as ledger:
        slow = replace(FOUND["e"], correct=None, linear_top1=None)
        ledger.append("measured", candidate="e", detail=slow.as_dict())
    told = shortlist_of(session.state_of(tmp_path / "s")).left_out
    assert told["e"] == "50 ms an image, more than 40"
    assert told["d"] == NOT_REACHED
    with closing(Ledger(tmp_path / "s" / "ledger.jsonl")) as ledger:
        ledger.append("closed", detail={"left_out": {"d": "no time", "e": "too slow"}})
    result = shortlist_of(session.state_of(tmp_path / "s"))
    assert result.ended
    assert {label: result.left_out[label] for label in "de"} == {"d": "no time", "e": "too slow"}


def test_who_goes_on_to_a_tournament_and_why() -> None:
    result = shortlist(spec(FOUND, max_latency_ms=40.0, top=1, audit=0.5), FOUND, {})
    assert (result.chosen, result.front, result.audited) == (("a",), ("a", "b", "d"), ("c",))
    assert result.finalists == ("a", "b", "d", "c")
    assert result.roles_of("a") == ["chosen", "front"]
    assert result.roles_of("e") == []


def test_compare_shows_a_screen(tmp_path: Path) -> None:
    asked = spec(FOUND, storage=str(tmp_path), audit=0.5, max_latency_ms=40.0)
    write(tmp_path / "s", asked, *FOUND.values(), closed=True)
    page = tmp_path / "page.html"
    words = ["compare", "s", "--storage", str(tmp_path)]
    shown = CliRunner().invoke(group, [*words, "--out", str(page)], catch_exceptions=False)
    assert "* shortlist: a, b\n" in shown.stdout
    assert "failed: f: OutOfMemory: no room" in shown.stdout
    assert "no trial" not in shown.stdout.lower()
    document = json.loads(CliRunner().invoke(group, [*words, "--json"]).stdout)
    (screen,) = document["screens"]
    assert screen["shortlist"] == ["a", "b"]
    assert screen["candidates"][3]["roles"] == ["front"]
    assert (document["candidates"], document["families"]) == ([], [])
    html = page.read_text(encoding="utf-8")
    assert "OutOfMemory: no room" in html
    assert 'id="screen"' in html
    assert 'id="families"' not in html
    limited = CliRunner().invoke(group, [*words, "--max-latency-ms", "40"])
    assert isinstance(limited.exception, UserError)
    assert "screened them only" in str(limited.exception)


def test_a_name_keeps_its_images_and_candidates_but_no_limits(tmp_path: Path) -> None:
    asked = spec(FOUND, storage=str(tmp_path))
    write(tmp_path / "s", asked)
    more = {**asked.candidates, "z": BackboneSpec(family="resnet")}
    fewer = {"a": asked.candidates["a"]}
    for changed in ({"top": 9, "minutes": 3.0}, {"candidates": more}, {"candidates": fewer}):
        assert name_mistakes(replace(asked, **changed)) == []  # type: ignore[arg-type]
    other = {**asked.candidates, "a": BackboneSpec(family="timm", model="q", image_size=64)}
    assert "a is another backbone" in name_mistakes(replace(asked, candidates=other))[0]
    images = replace(asked, data=DataSpec(train_limit=5))
    assert "data.train_limit" in name_mistakes(images)[0]


def test_status_tells_of_a_screen_and_what_needs_trials_refuses_it(tmp_path: Path) -> None:
    asked = spec(FOUND, storage=str(tmp_path))
    write(tmp_path / "s", asked, FOUND["a"], FOUND["f"])
    state = session.state_of(tmp_path / "s")
    shown = view(state, running=False)
    assert (shown.status, summary(shown)) == (
        RunStatus.INTERRUPTED,
        "2 of 6 candidates screened, 1 failed",
    )
    ledger = Ledger(tmp_path / "s" / "ledger.jsonl")
    ledger.append("closed")
    ledger.close()
    listed = CliRunner().invoke(group, ["status", "--storage", str(tmp_path)])
    assert "s                        done        2 of 6 candidates screened" in listed.stdout
    for words in (["status", "s"], ["status", "s", "--json"]):
        assert CliRunner().invoke(group, [*words, "--storage", str(tmp_path)]).exit_code == 0
    for words in (["replay", "s"], ["export", "s", "--to", str(tmp_path / "x")]):
        refused = CliRunner().invoke(group, [*words, "--storage", str(tmp_path)])
        assert isinstance(refused.exception, UserError)
        assert "'s' is a screen" in str(refused.exception)


@pytest.mark.parametrize(
    ("limits", "left_out"),
    [
        ({"max_latency_ms": 40.0}, "50 ms an image, more than 40"),
        ({"max_params_m": 4.0}, "5 M parameters, more than 4 M"),
    ],
)
def test_nothing_is_started_for_a_candidate_that_is_known_to_be_beyond_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], left_out: str
) -> None:
    asked = spec(FOUND, storage=str(tmp_path), **limits)
    write(tmp_path / "s", asked, *(one for label, one in FOUND.items() if label != "e"))
    ledger = Ledger(tmp_path / "s" / "ledger.jsonl")
    measured = replace(FOUND["e"], correct=None, linear_top1=None)
    ledger.append("measured", candidate="e", detail=measured.as_dict())
    ledger.close()
    store = ImageStore(info=DatasetFacts(height=8, width=8, content_hash="c"), path=tmp_path)
    monkeypatch.setattr(run, "prepare", lambda _: store)
    monkeypatch.setattr(attach, "attached", None)
    monkeypatch.setattr(run, "mirrored", lambda *_: nullcontext())
    result = run.run_screen(asked)
    assert result.left_out["e"] == left_out
    events = [record["event"] for record in read(ledger.path)]
    assert events[-2:] == ["resumed", "closed"]
    assert (tmp_path / "s" / "shortlist.json").is_file()
    assert run.run_screen(asked) == result
    assert len(list(read(ledger.path))) == len(events)  # nothing was left to be said


def test_changed_images_end_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spec(FOUND, storage=str(tmp_path))
    write(tmp_path / "s", asked)
    store = ImageStore(info=DatasetFacts(height=8, width=8, content_hash="d"), path=tmp_path)
    monkeypatch.setattr(run, "prepare", lambda _: store)
    with pytest.raises(UserError, match="have changed since 's' began"):
        run.run_screen(asked)
