"""The paragraph of methods that a paper needs, and what it cites: only what the runs did.

Every clause is made of a record or left out; a run without finals, say, has no word about tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.other_images import is_image_mean
from orchestrator.compare.runs import CandidateTrials, RunData, collect
from orchestrator.compare.statistics import ALPHA, LEVEL, POWER
from orchestrator.compare.verdicts import OF_LEVEL, detectable_text
from orchestrator.ledger import cost
from orchestrator.spec import limits
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.wording import MISSING, axis_name, day, points
from trainables.backbones.families import FAMILIES
from trainables.metrics import TOP1

SAMPLERS = {
    "random": "at random",
    "sobol": "along a scrambled Sobol sequence",
    "tpe": "by a tree-structured Parzen estimator",
}
SCHEDULERS = {
    "asha": "asynchronous successive halving (ASHA)",
    "pasha": "progressive successive halving (PASHA)",
    "top_k": "a single comparison that keeps the best third",
}
PROJECT = "backbone-tournament"
TIMM = "Wightman 2019, PyTorch Image Models (timm), doi:10.5281/zenodo.4414861"
RAY = "Liaw et al. 2018, Tune: A Research Platform for Distributed Model Selection and Training"
OF_SCHEDULER = {
    "asha": "Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, MLSys",
    "pasha": "Bohdal et al. 2023, PASHA: Efficient HPO and NAS with Progressive Resource "
    "Allocation, ICLR",
    "top_k": "Egele et al. 2023, Is One Epoch All You Need For Multi-Fidelity Hyperparameter "
    "Optimization?, ESANN",
}
OF_SAMPLER = {
    "sobol": "Owen 1998, Scrambling Sobol' and Niederreiter-Xing Points, Journal of Complexity",
    "tpe": "Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization, NeurIPS",
}
OF_DATASET = {
    "digits": "Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine "
    "Learning Repository",
    "cifar10": "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    "cifar100": "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
}
# By how the method of a pair begins.
OF_TEST = {
    "Welch": "Welch 1947, The Generalization of 'Student's' Problem when Several Different "
    "Population Variances are Involved, Biometrika",
    "McNemar": "McNemar 1947, Note on the Sampling Error of the Difference Between Correlated "
    "Proportions or Percentages, Psychometrika",
}
HOLM = "Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statistics"
TOST = (
    "Schuirmann 1987, A Comparison of the Two One-Sided Tests Procedure and the Power Approach, "
    "J. Pharmacokinetics and Biopharmaceutics"
)
BOOTSTRAP = "Efron 1979, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics"
CALIBRATION = "Guo et al. 2017, On Calibration of Modern Neural Networks, ICML"


@dataclass(frozen=True, kw_only=True)
class Methods:
    """``sentences`` of the paragraph, and the ``references`` of what they name."""

    sentences: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def text(self) -> str:
        """The paragraph."""
        return " ".join(self.sentences)


def methods_of(comparison: Comparison) -> Methods | None:
    """``None`` where nothing was searched: for screens, and for claims, whose design is declared
    on their own page."""
    candidates = [each for each in collect(comparison.runs) if each.search and each.sweep]
    if comparison.claims or not candidates:
        return None
    sentences = [
        *_compared(comparison, candidates),
        *_searched(comparison, candidates),
        *_pruned(candidates),
        *_finals(comparison, candidates),
        *_tested(comparison),
        *_carried_out(comparison.runs),
    ]
    references = dict.fromkeys(_references(comparison, candidates))
    return Methods(sentences=tuple(sentences), references=tuple(references))


def alike(texts: Mapping[str, str]) -> str:
    """What all candidates share once, else each with the names that it holds of."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{text} ({', '.join(of)})" for text, of in names.items())


def plural(number: int, noun: str, plural_noun: str | None = None) -> str:
    """``3 trials``, ``1 trial``."""
    return f"{number:,} {noun if number == 1 else plural_noun or noun + 's'}"


def _fact(comparison: Comparison, what: str) -> Mapping[str, object]:
    """By candidate, as far as each states it."""
    values = next((fact.values for fact in comparison.differences if fact.what == what), {})
    return {label: value for label, value in values.items() if value is not None}


def _compared(comparison: Comparison, candidates: Sequence[CandidateTrials]) -> Iterator[str]:
    labels, params = {each.label for each in candidates}, _fact(comparison, "params_m")
    named = []
    for one in comparison.candidates:
        if one.label not in labels:
            continue
        facts = [one.model or f"model {MISSING}"]
        if one.label in params:
            facts.append(f"{float(str(params[one.label])):.3g} M parameters")
        facts.append(_weights(one.weights, one.pretraining_data))
        if one.image_size:
            facts.append(f"images of {one.image_size} px")
        named.append(f"{one.label} ({', '.join(facts)})")
    info, size = comparison.dataset_info, ""
    if info is not None:
        counts = ", ".join(f"{count:,} {split}" for split, count in info.counts.items())
        size = f" ({counts} images of {plural(len(info.class_names), 'class', 'classes')}"
        size += f"; content hash {info.content_hash})" if info.content_hash else ")"
    yield (
        f"We compared {plural(len(named), 'image classifier')} on "
        f"{comparison.dataset or f'a dataset whose name is {MISSING}'}{size}: {'; '.join(named)}."
    )
    trained_on = {
        label: f"{int(str(count)):,}"
        for label, count in _fact(comparison, "train_images").items()
        if info is None or count != info.counts.get("train")
    }
    if trained_on:
        yield f"A trial trained on {alike(trained_on)} of the training images."


def _weights(weights: str | None, pretraining_data: str | None) -> str:
    if weights == "none":
        return "from random weights"
    if weights is None:
        return f"weights {MISSING}"
    return f"pretrained on {pretraining_data or 'data that are not on record'}"


def _searched(comparison: Comparison, candidates: Sequence[CandidateTrials]) -> Iterator[str]:
    searches, sizes, samplers, axes, published = {}, {}, {}, {}, []
    for each in candidates:
        assert each.sweep is not None
        of_search = Counter(trial.state.search for trial in each.search)
        searches[each.label] = plural(len(of_search), "independent search", "independent searches")
        sizes[each.label] = plural(max(of_search.values()), "trial")
        samplers[each.label] = SAMPLERS[each.sweep.scheduler.sampler]
        names = [axis_name(path).replace("_", " ") for path in each.space]
        axes[each.label] = ", ".join(names) if names else "no hyperparameter"
        if any(trial.state.published for trial in each.search):
            published.append(each.label)
    yield (
        f"Each candidate had {alike(searches)} of {alike(sizes)}, drawn {alike(samplers)} over "
        f"{alike(axes)}."
    )
    yield from _fixed(comparison, candidates)
    if published:
        whose = "each candidate" if len(published) == len(candidates) else ", ".join(published)
        yield f"The first trial of every search of {whose} had its family's published recipe."


def _fixed(comparison: Comparison, candidates: Sequence[CandidateTrials]) -> Iterator[str]:
    """Optimizer, batch and precision, where nobody searched them."""
    searched = {path.rpartition(".")[2] for each in candidates for path in each.space}
    batches = _fact(comparison, "global_batch") or _fact(comparison, "batch_size_per_worker")
    texts = {
        "optimizer": {label: str(name) for label, name in _fact(comparison, "optimizer").items()},
        "batch_size_per_worker": {
            label: f"{plural(int(str(images)), 'image')} a step"
            for label, images in batches.items()
        },
        "precision": {label: str(kind) for label, kind in _fact(comparison, "precision").items()},
    }
    shared = [alike(known) for axis, known in texts.items() if known and axis not in searched]
    if shared:
        yield f"The same for all trials of a candidate: {', '.join(shared)}."


def _pruned(candidates: Sequence[CandidateTrials]) -> Iterator[str]:
    yield alike({each.label: _schedule(each.sweep.scheduler) for each in candidates if each.sweep})
    trials = [trial for each in candidates for trial in each.search]
    states = Counter(str(trial.status) for trial in trials)
    ended = ", ".join(f"{states[state]} {state}" for state in ("finished", "pruned", "failed"))
    unfinished = len(trials) - sum(states[state] for state in ("finished", "pruned", "failed"))
    yield (
        f"Of {plural(len(trials), 'trial')} {ended}"
        f"{f', {unfinished} have not ended' if unfinished else ''}."
    )
    audited = sum(trial.state.audited or bool(trial.audit) for trial in trials)
    if audited:
        yield (
            f"{plural(audited, 'trial')} due to be pruned, drawn at random, "
            f"{'was' if audited == 1 else 'were'} finished outside the competition as an audit."
        )


def _schedule(scheduler: SchedulerSpec) -> str:
    length = f"A full trial had {plural(scheduler.max_epochs, 'epoch')}"
    rungs = scheduler.rungs()
    if scheduler.kind == "none" or not rungs:
        return f"{length}; no trial was pruned."
    after = " and ".join(map(str, rungs[-2:]))
    after = ", ".join([*map(str, rungs[:-2]), after])
    return (
        f"{length}; {SCHEDULERS[scheduler.kind]} compared the trials of a search after "
        f"epoch{'s' * (len(rungs) > 1)} {after}, reduction factor {scheduler.reduction_factor}."
    )


def _finals(comparison: Comparison, candidates: Sequence[CandidateTrials]) -> Iterator[str]:
    metric = comparison.metric
    by = "" if metric == TOP1 else f", by {metric.noun}: {metric.definition}"
    yield f"Recipes were chosen on validation images alone{by}."
    finals = {each.family: each.final for each in comparison.families if each.final}
    if not finals:
        return
    seeds = {
        label: plural(len(final.seeds) // max(1, len(final.winners)), "fresh seed")
        for label, final in finals.items()
    }
    number = sum(len(final.seeds) + final.failed for final in finals.values())
    failed = sum(final.failed for final in finals.values())
    lost = f", of which {failed} failed" if failed else ""
    opened = comparison.test_opened_at
    when = f", on {day(opened)}" if opened is not None else ""
    times = max(run.state.test_openings for run in comparison.runs)
    again = f" (opened {times} times in all)" if times > 1 else ""
    yield (
        f"The winner of every search was frozen and trained again over {alike(seeds)}, "
        f"{plural(number, 'final')} in all{lost}; only then was the test split "
        f"opened{when}{again}. Figures of finals are those after the last epoch."
    )
    if any(opening.number > 1 for run in comparison.runs for opening in run.state.split_openings):
        yield "Earlier runs had opened the same test split."


def _tested(comparison: Comparison) -> Iterator[str]:
    metric = comparison.metric
    tests = [each.final.test for each in comparison.families if each.final and each.final.test]
    if any(test.low is not None for test in tests):
        searches = max(test.searches for test in tests)
        over = "searches, seeds" if searches > 1 else "seeds of the winner"
        units = "groups of images" if any(test.groups for test in tests) else "images"
        images = f" and {units}" if all(test.images for test in tests) else ""
        yield (
            f"Figures of test {metric.noun} are means with {100 * LEVEL:.0f} % intervals for new "
            f"{over}{images}."
        )
    tested = [pair for pair in comparison.pairs if pair.p_value is not None]
    if not tested:
        return
    methods = " and ".join(dict.fromkeys(pair.method for pair in tested))
    corrected = f", with Holm's correction over {len(tested)} pairs" if len(tested) > 1 else ""
    yield f"Pairs were tested by {methods}{corrected}, at a level of {ALPHA:g}."
    if _is_resampled(comparison):
        yield "What other images would change was measured by a paired bootstrap over test images."
    if any(pair.p_value_equivalent is not None for pair in tested):
        yield (
            "Two candidates are called equivalent where two one-sided tests show a difference of "
            f"less than {points(tested[0].margin, metric)}."
        )
    detectable = [size for pair in tested if (size := pair.smallest_detectable) is not None]
    if seen := detectable_text(detectable, metric):
        yield (
            f"A difference of {seen} would have been detected in any pair with a power of "
            f"{100 * POWER:.0f} %."
        )
    elif detectable:
        yield (
            "No difference would have been detected in every pair with a power of "
            f"{100 * POWER:.0f} %."
        )
    if comparison.inference.level is not None:
        yield f"The tests speak of {OF_LEVEL[comparison.inference.level]}."


def _is_resampled(comparison: Comparison) -> bool:
    """Whether the chance of images is a bootstrap's: of a metric that is no mean over images."""
    metric = comparison.metric
    is_tested = any(pair.p_value is not None for pair in comparison.pairs)
    return is_tested and metric != TOP1 and not is_image_mean(metric)


def _carried_out(runs: Sequence[RunData]) -> Iterator[str]:
    hours: dict[str, float] = {}
    for run in runs:
        device = limits.device(cost.resources_of(run.state))
        hours[device] = hours.get(device, 0.0) + cost.spent_device_hours(run.state)
    took = " and ".join(f"{amount:.3g} {device}-hours" for device, amount in hours.items())
    machines = " and ".join(dict.fromkeys(filter(None, map(_machine, runs))))
    yield f"All of it took {took}{f' on {machines}' if machines else ''}."
    software = " and ".join(dict.fromkeys(filter(None, map(_software, runs))))
    if software:
        yield f"Software: {software}."
    hashes = [run.header.spec_hash for run in runs if run.header.spec_hash]
    if hashes:
        yield f"Hash of the specification: {', '.join(hashes)}."


def _machine(run: RunData) -> str:
    environment = run.header.environment
    parts = [environment.processor] if environment.processor else []
    if environment.cpus:
        parts.append(plural(environment.cpus, "core"))
    devices = {trial.detail.get("device") for trial in run.state.trials.values()}
    return ", ".join([*parts, *sorted(str(each) for each in devices if each not in (None, "cpu"))])


def _software(run: RunData) -> str:
    header, environment = run.header, run.header.environment
    versions = {PROJECT: header.code_version, "Python": environment.python}
    versions |= dict(environment.versions)
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _references(comparison: Comparison, candidates: Sequence[CandidateTrials]) -> Iterator[str]:
    if comparison.dataset in OF_DATASET:
        yield OF_DATASET[comparison.dataset]
    yield TIMM
    for each in candidates:
        family = FAMILIES.get(each.family or "")
        if family and family.reference:
            yield family.reference
    for gain in comparison.published_recipes:
        if gain.source:
            yield f"{gain.source} (first recipe of {gain.family})"
    for each in candidates:
        if each.sweep:
            if each.sweep.scheduler.kind in OF_SCHEDULER and each.sweep.scheduler.rungs():
                yield OF_SCHEDULER[each.sweep.scheduler.kind]
            if each.sweep.scheduler.sampler in OF_SAMPLER:
                yield OF_SAMPLER[each.sweep.scheduler.sampler]
    yield RAY
    tested = [pair for pair in comparison.pairs if pair.p_value is not None]
    for pair in tested:
        for start, reference in OF_TEST.items():
            if start in pair.method:
                yield reference
    if len(tested) > 1:
        yield HOLM
    if any(pair.p_value_equivalent is not None for pair in tested):
        yield TOST
    if _is_resampled(comparison):
        yield BOOTSTRAP
    if comparison.metric != TOP1:
        yield f"{comparison.metric.source} ({comparison.metric.noun})"
    probes = [each.final.probes for each in comparison.families if each.final]
    if any("calibration.ece" in one.numbers for one in probes if one):
        yield CALIBRATION
