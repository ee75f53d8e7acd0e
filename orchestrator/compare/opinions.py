"""Where a candidate is behind: what people believe to be the reason, and the claim that tests it.

A run that finds one architecture behind another does not say why. What is said here is therefore
received opinion, told as such, with the experiment of :mod:`orchestrator.claims` that would settle
it on the same images. Nothing is said where the verdict does not call one better.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.compare.families import CandidateSummary
from orchestrator.compare.runs import CandidateTrials
from orchestrator.compare.verdicts import PairResult, PairVerdict
from orchestrator.wording import figure
from trainables.backbones.families import FAMILIES
from trainables.metrics import metric_of


@dataclass(frozen=True, kw_only=True)
class Belief:
    """Why the family ``behind`` should be behind another, from scratch: in the words of ``claim``
    and of its ``source``; ``remedy`` is what would help if it were so."""

    behind: str
    ahead: str
    claim: str
    statement: str
    source: str
    remedy: str


BELIEFS = (
    Belief(
        behind="vit",
        ahead="resnet",
        claim="vit-needs-more-data",
        statement="Transformers are hungry for data: with few images a ViT falls behind a ResNet.",
        source="Dosovitskiy et al. 2021",
        remedy="more images",
    ),
)
PRETRAINED = "in1k"


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """``text`` says who is behind whom, on how many images, what is believed and not tested here,
    and the ``command`` that tests it."""

    behind: str
    ahead: str
    claim: str
    command: str
    text: str


def opinions_of(
    candidates: Sequence[CandidateTrials],
    entries: Sequence[CandidateSummary],
    pairs: Sequence[PairResult],
    train_images: Mapping[str, int],
) -> tuple[Opinion, ...]:
    """One for each candidate from scratch that a pair calls worse than one of which a belief
    speaks. ``train_images`` is by candidate, as far as it is on record."""
    by_label = {candidate.label: candidate for candidate in candidates}
    on_test = {
        entry.family: figure(entry.final.test.mean, metric_of(entry.metric))
        for entry in entries
        if entry.final and entry.final.test
    }
    made: dict[tuple[str, str], Opinion] = {}
    for behind, ahead in map(_order, pairs):
        for belief in _beliefs(by_label.get(behind), by_label.get(ahead)):
            text, command = (
                _belief_text(belief, by_label[behind]),
                _command(by_label[behind], belief),
            )
            seen = _training_text(by_label[behind], train_images.get(behind))
            made.setdefault(
                (behind, belief.claim),
                Opinion(
                    behind=behind, ahead=ahead, claim=belief.claim, command=command,
                    text=f"{behind} is behind {ahead}: {on_test[behind]} against "
                    f"{on_test[ahead]} on test{seen}. Why, this run does not say. "
                    f"{text} To test it on these images: {command}",
                ),
            )  # fmt: skip
    return tuple(made.values())


def _order(pair: PairResult) -> tuple[str, str]:
    """Who is behind, and whom; of no verdict, nobody."""
    match pair.verdict:
        case PairVerdict.A_BETTER:
            return pair.b, pair.a
        case PairVerdict.B_BETTER:
            return pair.a, pair.b
    return "", ""


def _beliefs(behind: CandidateTrials | None, ahead: CandidateTrials | None) -> Iterator[Belief]:
    if behind is None or ahead is None or behind.sweep is None or ahead.sweep is None:
        return
    if {behind.sweep.backbone.weights, ahead.sweep.backbone.weights} != {"none"}:
        return
    for belief in BELIEFS:
        if (belief.behind, belief.ahead) == (behind.family, ahead.family):
            yield belief


def _training_text(candidate: CandidateTrials, images: int | None) -> str:
    assert candidate.sweep is not None
    epochs = candidate.sweep.scheduler.max_epochs
    return "" if images is None else f", after {epochs} epochs of {images:,} images from scratch"


def _belief_text(belief: Belief, candidate: CandidateTrials) -> str:
    assert candidate.sweep is not None
    remedies = [belief.remedy]
    family = FAMILIES[belief.behind]
    if family.member(candidate.sweep.backbone.scale, PRETRAINED):
        remedies.append(f"weights that have learned from others (--weights {PRETRAINED})")
    return (
        f"Received opinion: “{belief.statement}” ({belief.source}). If it holds here, "
        f"{' or '.join(remedies)} would help."
    )


def _command(candidate: CandidateTrials, belief: Belief) -> str:
    assert candidate.sweep is not None
    data, scale = candidate.sweep.data, candidate.sweep.backbone.scale
    words = ["orchestrator", "claims", "run", belief.claim, "--dataset", data.source]
    words += ["--scale", scale]
    if data.archive is not None:
        words += ["--set", f"data.archive={data.archive}"]
    return shlex.join(words)
