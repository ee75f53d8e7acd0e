"""The HTML report: whole, offline, honest, and of bounded size."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.main import group
from orchestrator.compare.comparison import compare
from orchestrator.compare.report.figures import FAMILY, changes, figure_of, new_plot, pareto
from orchestrator.compare.report.page import command, read_report, report_html
from orchestrator.compare.runs import load
from orchestrator.compare.verdicts import OF_LEVEL
from orchestrator.launch.options import OPTIONS, RunOptions, spec_of
from orchestrator.ledger import cost
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.run import diff
from orchestrator.wording import duration, percent
from tests.unit.compare.compare_runs import RunFolder, probes, search_run, tournament_run
from trainables.errors import UserError

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "</script><script>alert(1)</script> & <b> $x_1$ https://example.org/"


class Page(HTMLParser):
    """Collects what the tests ask of a page, and fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[Counter[str]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "figure":
            self.figures.append(Counter())
        if "figure" in self.open:
            self.figures[-1][tag] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(*folders: Path) -> str:
    runs = [load(folder) for folder in folders]
    return report_html(compare(runs))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(search_run(tmp_path_factory.mktemp("runs") / "demo"))


def test_it_loads_nothing_from_outside(demo: str) -> None:
    page = Page(demo)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert "http://" not in demo
    assert "https://" not in demo
    assert "@import" not in demo
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", demo))
    assert page.of("script") == [{"type": "application/json", "id": "spec"}]  # data, never run
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.of("meta"))


def test_every_picture_has_words_and_a_table(demo: str) -> None:
    page = Page(demo)
    pictures = page.of("svg")
    assert len(pictures) == 2 + 3 + (3 + 3 + 3)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in pictures)
    assert len(page.figures) == len(pictures)
    for figure in page.figures:
        assert (figure["svg"], figure["figcaption"], figure["details"]) == (1, 1, 1)
        assert figure["table"] == 1
        assert figure["tr"] > 1


def test_anchors_resolve_and_ids_are_unique(demo: str) -> None:
    page = Page(demo)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] or "" for a in page.of("a") + page.of("use")]
    assert "#differences" in links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", demo)) <= set(ids)


def test_sections_come_in_order_after_the_answer(demo: str) -> None:
    assert [section["id"] for section in Page(demo).of("section")] == [
        "finals", "families", "tradeoffs", "cost", "curves", "budget", "audit", "recipe", "probes",
        "failures", "data", "differences", "methods", "reproduce",
    ]  # fmt: skip
    assert demo.index('class="answer"') < demo.index("<section")


def unfolded(page: str) -> list[str]:
    """The ids of the sections that are open as the page is."""
    return re.findall(r'<details class="part" open>.*?<section id="([\w-]+)"', page, flags=re.S)


def test_what_bears_the_answer_is_unfolded(demo: str, whole: str) -> None:
    assert (unfolded(demo), unfolded(whole)) == (["families"], ["finals"])


def test_the_first_screen_has_answer_level_cost_and_what_differs(
    tournament: Path, whole: str
) -> None:
    made = compare([load(tournament)])
    head = whole[: whole.index("<main>")]
    said = " ".join(" ".join(Page(head + "</body></html>").text).replace("\u00a0", " ").split())
    assert made.answer in said
    level = made.inference.level
    assert level
    assert said.count(OF_LEVEL[level]) == 2  # in the answer, and as a fact
    seconds = 3600 * cost.spent_device_hours(made.runs[0].state)
    assert f"{duration(seconds)} of CPU" in said
    assert not next(fact.same for fact in made.differences if fact.what == "patch")
    assert "Differs besides the architecture batch size per worker (" in said
    (figure,) = re.findall(r'<svg role="img" aria-label="([^"]*)"', head)
    for entry in made.families:
        assert entry.final
        assert f"{entry.family} {percent(entry.final.test_top1.mean)}" in figure


def test_the_answer_is_its_lead_and_what_stands_beside_it(tournament: Path, tmp_path: Path) -> None:
    empty = RunFolder(tmp_path / "run", ()).close(None)
    for folder in (tournament, empty):
        answer = compare([load(folder)]).inference
        assert " ".join([answer.lead, *answer.beside]) == answer.text
        assert answer.beside


def test_pictures_take_their_colours_from_the_page(demo: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", demo, flags=re.S))
    assert "currentColor" in drawn
    assert "var(--family-0)" in drawn
    assert not re.findall(r"(?:fill|stroke): #", drawn)
    assert "font-family" not in drawn
    assert "prefers-color-scheme: dark" in demo


def test_it_says_what_the_comparison_says(tmp_path: Path) -> None:
    run = load(search_run(tmp_path / "demo"))
    made = compare([run])
    said = " ".join(" ".join(Page(report_html(made)).text).replace("\u00a0", " ").split())
    assert made.answer in said
    assert "Missing: no final was run" in said
    assert "5bec5bec5bec5bec" in said
    assert "What device time went into" in said
    for entry in made.families:
        assert entry.device_seconds_parts
        for seconds in entry.device_seconds_parts.parts().values():
            assert duration(seconds) in said
        assert f"{100 * entry.best_val_top1:.1f} %" in said
        assert entry.best_trial in said
    assert "below the cut-off 0.44 of 5 trials" in said


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit", HOSTILE))
    run.trial(HOSTILE, [0.4, 0.5])
    run.trial(HOSTILE, [0.4], end="failed", reason=HOSTILE)
    run.trial("vit", [0.4], end="pruned", reason=HOSTILE)
    run.ledger.append("noted", reason=HOSTILE)
    made = report(run.close())
    page = Page(made)
    assert len(page.of("script")) == 1
    assert not page.of("b")[7 + 2 * 2 :]  # only those of the keys
    assert "alert(1)" in "".join(page.text)


@pytest.mark.parametrize("end", [None, "pruned", "failed"])
def test_a_run_with_nothing_finished_has_a_page(tmp_path: Path, end: str | None) -> None:
    run = RunFolder(tmp_path / "run")
    run.trial("vit", [0.4, np.nan], end=end)
    run.trial("resnet", [], end=end if end != "pruned" else "failed")
    page = Page(report(run.close(None)))
    assert len(page.of("svg")) == 1
    assert "nothing can be ranked" in "".join(page.text)


def test_one_family_has_nobody_to_be_compared_with(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5])
    page = Page(report(run.close()))
    assert len(page.of("svg")) == 2 + 1 + 1 + 3
    assert "The order" not in "".join(page.text)


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    page = Page(report(RunFolder(tmp_path / "run", ()).close(None)))
    assert not page.of("svg")
    assert "missing" in "".join(page.text)


def test_finals_and_their_pairs_are_shown(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    draw = np.random.default_rng(0)
    for family, accuracy in (("resnet", 0.6), ("vit", 0.9)):
        run.trial(family, [0.5, accuracy])
        for seed in range(3):
            run.final(family, draw.random(500) < accuracy, seed=seed)
    said = "".join(Page(report(run.close())).text).replace("\u00a0", " ")
    assert "this recipe of vit better than this recipe of resnet" in said
    assert "the winners' recipes, not the candidates" in said
    assert "n = 3" in said
    assert "smallest detectable" in said


@pytest.fixture(scope="module")
def tournament(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tournament_run(tmp_path_factory.mktemp("runs") / "whole", trials=24)


@pytest.fixture(scope="module")
def whole(tournament: Path) -> str:
    return report(tournament)


def test_a_whole_tournament_has_every_picture(whole: str) -> None:
    page = Page(whole)
    names = {attributes.get("aria-label", "") or "" for attributes in page.of("svg")}
    for start in ("Expected best of", "Importance of", "same answer, %", "accuracy, %",
                  "Mean attention", "Accuracy against confidence", "Latency"):  # fmt: skip
        assert any(name.startswith(start) for name in names), start
    assert all(figure["tr"] > 1 for figure in page.figures)


def test_the_audit_and_the_gap_are_those_of_the_comparison(tournament: Path, whole: str) -> None:
    made = compare([load(tournament)]).as_dict()
    said = "".join(Page(whole).text).replace("\u00a0", " ")
    for entry in made["audit"]["families"]:
        assert f"{entry['ended']} of {entry['pruned']}" in said
        for one in entry["kendall_tau_by_rung"]:
            assert one["tau"] is not None
            ends = f"{one['low']:.2f} to {one['high']:.2f}, n = {one['n']})"
            assert f"{one['tau']:.2f} (95 % interval {ends}".replace("-", "−") in said
    for gap in made["gap"]:
        assert f"{100 * gap['selection']:.1f} points".replace("-", "−") in said
    for entry in made["curves_over_budget"]:
        assert f"{100 * entry['low'][-1]:.1f} %" in said
    assert said.count("The band holds; the audited stand for all pruned ones.") == 3


def test_a_band_without_an_audit_is_called_descriptive(demo: str) -> None:
    said = "".join(Page(demo).text)
    assert said.count("Descriptive only: pruning without an audit") == 3
    assert "The band holds" not in said
    assert "what pruning lost is unknown" in said.replace("\n", " ")


def test_probes_this_page_does_not_know_are_listed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for seed in (0, 1):
        found = {**probes(4, seed=seed), "texture": {"bias": 0.25 + seed / 4}}
        run.final("vit", np.ones(9, bool), seed=seed, probes=found)
    said = " ".join(Page(report(run.close())).text)
    assert "texture.bias" in said
    assert "0.375" in said


def test_what_runs_have_none_of_is_said_to_be_missing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5])
    said = " ".join(Page(report(run.close())).text)
    for missing in ("no final was run", "no final was probed", "Importance is missing",
                    "Nothing was pruned"):  # fmt: skip
        assert missing in said


def test_a_second_opening_of_test_marks_the_page(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.final("vit", np.ones(9, bool), seed=0)
    for _ in range(2):
        run.ledger.append("test_opened")
    assert "The test split was opened again" in " ".join(Page(report(run.close())).text)


def test_normalisation_is_among_what_differed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for family, mean in (("vit", 0.5), ("resnet", 0.485)):
        run.trial(family, [0.5], detail={"mean": [mean] * 3, "std": [0.5] * 3})
    said = " ".join(Page(report(run.close())).text)
    assert "0.485, 0.485, 0.485" in said
    assert "std 0.5, 0.5, 0.5" in said


def test_a_report_gives_its_spec_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "demo", ("resnet", "vit", "hybrid")).close()
    path = tmp_path / "report.html"
    path.write_text(report(folder), encoding="utf-8")
    header = load(folder).header
    read = read_report(path)
    assert (read["name"], read["spec"]) == ("demo", header.spec.as_dict())
    assert read["spec_hash"] == header.spec_hash
    assert read["command"].startswith(
        "orchestrator tournament resnet vit hybrid --name demo --dataset digits --scale tiny "
        "--weights none --searches 1 --trials 8 --max-epochs 9 --seed 0 --final-seeds 0 "
    )


def test_the_command_asks_for_finals_audit_and_scheduler(tmp_path: Path) -> None:
    run = load(RunFolder(tmp_path / "my run", ("vit",)).close())
    sweep = replace(
        run.header.spec.sweeps[0],
        scheduler=SchedulerSpec(kind="pasha", audit=0.1),
        resources=ResourceSpec(num_workers=2),
    )
    spec = replace(run.header.spec, sweeps=(sweep,), final_seeds=3)
    header = replace(run.header, spec=spec)
    asked = command(replace(run, state=replace(run.state, header=header)))
    assert asked.startswith("orchestrator sweep vit --name 'my run' --dataset digits")
    assert "--final-seeds 3 --audit 0.1 --workers 2 --set " in asked
    assert "--set scheduler.kind=pasha" in asked


def test_the_command_names_the_candidates_as_they_were_typed(tmp_path: Path) -> None:
    typed = ["timm:resnet18", "vit", "timm:resnet26=a b.safetensors", "own=timm:resnet18=hub",
             "wide=vit"]  # fmt: skip
    options = RunOptions(weights="none", searches=3, set=("wide.backbone.scale=base",))
    spec = spec_of(typed, options, compares=True)
    run = load(RunFolder(tmp_path / "pool", ("vit",)).close())
    made = replace(run, state=replace(run.state, header=replace(run.header, spec=spec)))
    program, name, *arguments = shlex.split(command(made))
    assert (program, name, arguments[:5]) == ("orchestrator", "tournament", typed)
    again = group.commands[name].make_context(name, arguments).params
    chosen = RunOptions(**{key: again[key] for key in ("weights", "searches", "set")})
    assert spec_of(again["target"], chosen, compares=True).hash() == spec.hash()
    # one of before there were labels
    old = replace(spec, sweeps=(replace(spec.sweeps[0], label=None),))
    made = replace(run, state=replace(run.state, header=replace(run.header, spec=old)))
    assert command(made).startswith("orchestrator sweep timm=timm:resnet18 --name pool")


@pytest.mark.parametrize(
    ("typed", "sets"),
    [
        # the demo's
        (["resnet", "vit", "hybrid"],
         ["data.train_limit=1000", "backbone.image_size=16", "vit.backbone.patch=4"]),
        (["resnet-sgd"], ["recipe.learning_rate=0.1", "recipe.momentum=0.8"]),
        (["vit-patches"], ["recipe.augment=light", "recipe.weight_decay=log(1e-4,0.123456789)"]),
        (["vit"], ["recipe.optimizer=[adamw,sgd]", "recipe.learning_rate=log(1e-4,1e-1)",
                   "recipe.warmup_epochs=2", "scheduler.reduction_factor=2"]),
        (["vit", "resnet"], ["resnet.recipe.label_smoothing=0", "published_first=false",
                             "vit.recipe.mixup=[0,0.2]", "backbone.image_size=[32,64]"]),
        (["vit", "resnet"], ["backbone.scale=small", "resnet.backbone.weights=hub",
                             "data.source=photos", "data.group=/(p[0-9]+)_",
                             "recipe.clip_grad_norm=none", "resources.gpus_per_worker=1",
                             "recipe.compile=true"]),
        (["vit", "resnet"], ["backbone.weights=hub", "backbone.scale=small", "data.source=photos",
                             "data.short_side=100", "vit.backbone.image_size=96"]),
    ],
)  # fmt: skip
def test_the_command_of_a_report_asks_for_the_very_run(
    tmp_path: Path, typed: list[str], sets: list[str]
) -> None:
    options = RunOptions(max_epochs=9, searches=1, set=tuple(sets))
    spec = spec_of(typed, options, compares=len(typed) > 1)
    run = load(RunFolder(tmp_path / "run", ("vit",)).close())
    made = replace(run, state=replace(run.state, header=replace(run.header, spec=spec)))
    _, name, *arguments = shlex.split(command(made))
    again = group.commands[name].make_context(name, arguments).params
    targets, asked = again.pop("target"), {k: v for k, v in again.items() if k in OPTIONS}
    targets = [targets] if isinstance(targets, str) else targets
    back = spec_of(targets, RunOptions(**asked), compares=name == "tournament")
    assert diff(replace(spec, name=""), replace(back, name="")) == []
    assert back.hash() == spec.hash()


def test_a_hostile_spec_comes_back_unchanged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / HOSTILE.replace("/", "_"), (HOSTILE,)).close()
    path = tmp_path / "report.html"
    path.write_text(report(folder), encoding="utf-8")
    assert read_report(path)["spec"]["sweeps"][0]["backbone"]["family"] == HOSTILE


def test_one_run_of_several_is_named(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report(*[RunFolder(tmp_path / name).close() for name in ("a", "b")]))
    assert read_report(path, run="b")["name"] == "b"
    with pytest.raises(UserError, match=r"none was named; valid: a, b\. Fix"):
        read_report(path)
    with pytest.raises(UserError, match=r"got 'c'; valid: a, b\. Fix"):
        read_report(path, run="c")


@pytest.mark.parametrize("content", [None, b"<html></html>", b"\xff\xfe"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "page.html"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="Fix: name") as caught:
        read_report(path)
    assert "\n" not in str(caught.value)


def test_two_runs_share_a_page(tmp_path: Path) -> None:
    made = report(search_run(tmp_path / "a", ("vit",)), search_run(tmp_path / "b", ("vit",)))
    said = "".join(Page(made).text)
    assert "vit (a)" in said
    assert "vit (b)" in said


def test_a_thousand_trials_stay_below_five_megabytes(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "large", ("resnet", "vit"), trials=500, epochs=30)
    made = report(folder)
    assert len(made.encode()) < 5_000_000
    assert made.count("vit-0499") >= 1


def test_many_points_become_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.compare.report.figures.VECTOR_POINTS", 10)
    made = report(search_run(tmp_path / "run", ("vit",)))
    assert 'href="data:image/png;base64,' in made


def test_pareto_front_by_hand() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.0, 0.7), (4.0, 0.9), (5.0, 0.95)]
    assert pareto(points) == [(1.0, 0.5), (2.0, 0.7), (3.0, 0.9), (5.0, 0.95)]


def test_changes_keep_improvements_and_the_end() -> None:
    spent = np.arange(1.0, 7.0)
    best = np.array([np.nan, 0.2, 0.2, 0.5, 0.5, 0.5])
    kept = changes(spent, best)
    assert [array.tolist() for array in kept] == [[2.0, 4.0, 6.0], [0.2, 0.5, 0.5]]


def test_picture_colours_are_the_pages_light_ones(demo: str) -> None:
    for index, value in enumerate(FAMILY):
        assert f"--family-{index}: {value};" in demo


def test_names_in_any_script_are_drawn_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    """Fonts of this machine do not matter: the text stays text, for the fonts of its reader."""
    with new_plot() as axes:
        axes.set_title("日本")
        figure = figure_of(axes, "one", "One", "one", [])
    assert "日本" in figure.svg
    assert not recwarn.list
