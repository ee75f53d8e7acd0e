"""What a run compares, as it is typed, and what its label may be: ``[LABEL=]TARGET[=WEIGHTS]``.

    vit                                  the family, labelled vit
    timm:resnet18                        labelled resnet18
    timm:resnet18=weights.safetensors    the same with first weights of its own
    small=timm:resnet18=hub              under a label that was chosen
    wide=vit                             a second vit, which --set wide.PATH=VALUE makes another

A label is the candidate's name in a run: in trials' names, hence in files, in ``--set``, in the
ledger, in MLflow and in the report.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainables.backbones.families import FAMILIES
from trainables.config import BackboneSpec, DataSpec, Recipe
from trainables.errors import UserError

TIMM = "timm:"
LONGEST_LABEL = 64  # timm's longest name, with its tag, has 56
LABEL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_LABEL - 1}}}")
# timm/resnet50.a1_in1k, hf-hub:timm/resnet50.a1_in1k, or the address of its page, with or without
# timm: before it.
HUB_NAME = re.compile(
    r"(?P<label>[A-Za-z0-9._-]+=)?"
    r"(?P<mark>timm:|(?:timm:)?(?:hf[-_]hub:|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/))?"
    r"(?P<owner>[A-Za-z0-9_.-]+)/(?P<model>[^/=@?#:\s]+)(?:/(?:tree/main)?/?)?(?P<weights>=.*)?"
)
# First words of what --set reaches, and the aliases that MLflow's registry or a run has by itself.
RESERVED = (
    *(owner.section for owner in (Recipe, BackboneSpec, DataSpec)),
    *("scheduler", "resources", "trials", "seed", "published_first", "champion", "latest"),
)
# As trials' names go on, VIT-s2-0000 and VIT-final-00, and MLflow's own aliases of versions.
TAKEN = re.compile(r".*-s\d+|.*-final\d*|v\d+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """``target``: what :func:`orchestrator.spec.named_sweeps.resolve` takes. ``weights``: first
    weights of its own, as ``backbone.weights``. ``label`` is ``None`` for the target's usual one.
    """

    target: str
    weights: str | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """The inverse of ``str``. Raises ``UserError`` where nothing is before or after a ``=``.
        What the target names, and whether the label may be used, is checked later, with all others.
        """
        label: str | None
        typed_text, text = text, by_timms_name(text)
        label, equals, rest = text.partition("=")
        if not equals or not _is_label(label, rest):
            label, rest = None, text
        weights: str | None
        target, equals, weights = (rest, "", "") if _is_file(rest) else rest.partition("=")
        if not equals:
            weights = None
        if "=" in text and "" in (label, target, weights):
            raise UserError(
                f"a candidate is [LABEL=]TARGET[=WEIGHTS], with something on each side of '='; got "
                f"{typed_text!r}. Fix: vit, timm:resnet18=PATH or small=timm:resnet18=hub"
            )
        return cls(target=target, weights=weights, label=label)

    @classmethod
    def of(cls, backbone: BackboneSpec, label: str | None, *, weights: str) -> Candidate:
        """As it would be typed beside ``--weights`` as given: its label where it is not the usual
        one of its target."""
        usual = default_label(backbone.model or "") if backbone.family == "timm" else None
        return cls(
            target=typed(backbone),
            weights=None if backbone.weights == weights else backbone.weights,
            label=None if label == usual else label or backbone.family,
        )

    def __str__(self) -> str:
        """As it is typed."""
        return "=".join(part for part in (self.label, self.target, self.weights) if part)


def by_timms_name(text: str) -> str:
    """A candidate whose model is named as the hub shows it, ``timm/MODEL`` or its page's address,
    as ``timm:MODEL``; all other texts as they are. Raises ``UserError`` for repositories of others
    than timm, whose format nobody knows.
    """
    match = HUB_NAME.fullmatch(text)
    if match is None or (match["label"] or "").rstrip("=") in FAMILIES:
        return text
    if match["owner"].lower() == "timm" and not _is_file(match["model"]):
        return f"{match['label'] or ''}{TIMM}{match['model']}{match['weights'] or ''}"
    if match["mark"] is None:
        return text
    raise UserError(
        f"a model of the hub is one of timm's own repositories; got {match['owner']}/"
        f"{match['model']}. Fix: download it and name architecture and folder, timm:MODEL=FOLDER"
    )


def _is_label(head: str, rest: str) -> bool:
    """Whether ``head`` of ``HEAD=REST`` names the candidate, and is not its target."""
    if head.startswith(TIMM) or _is_file(head):
        return False
    if head in FAMILIES:  # VIT=WEIGHTS, but for VIT=TARGET, which will be refused for its label
        return rest.startswith(TIMM) or _is_file(rest) or rest.partition("=")[0] in FAMILIES
    # runs/lr=1/sweep.py:function is one path.
    return bool(LABEL.fullmatch(head)) or not _is_file(rest)


def _is_file(target: str) -> bool:
    return not target.startswith(TIMM) and (".py:" in target or target.endswith((".py", ".json")))


def default_label(model: str) -> str:
    """Of ``timm:MODEL``: the model's name, with its tag."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._")[:LONGEST_LABEL] or "timm"


def label_mistakes(candidates: Sequence[tuple[str, BackboneSpec]]) -> list[str]:
    """What is wrong with the labels of a run's candidates, a line each."""
    mistakes = []
    for label, backbone in candidates:
        fix = f"LABEL={typed(backbone)}"
        if not LABEL.fullmatch(label):
            mistakes.append(
                f"a candidate's label must be 1 to {LONGEST_LABEL} letters, digits, '.', '_' or "
                f"'-', the first a letter or digit; got {label!r}. "
                f"Fix: {default_label(label)}={typed(backbone)}"
            )
        elif label in FAMILIES and label != backbone.family:
            mistakes.append(
                f"a family's name ({', '.join(FAMILIES)}) labels its own members alone; got "
                f"{label!r} for {typed(backbone)}. Fix: another {fix}"
            )
        elif label.partition(".")[0].lower() in RESERVED or TAKEN.fullmatch(label):
            mistakes.append(
                f"a candidate's label must not begin as a path of --set or a registry's alias does "
                f"({', '.join(RESERVED)}), nor be v1 or end in -s2 or -final, as trials' names go "
                f"on; got {label!r}. Fix: another {fix}"
            )
    counts = Counter(_folded(label) for label, _ in candidates)
    for label, backbone in {_folded(each[0]): each for each in candidates}.values():
        if (count := counts[_folded(label)]) > 1:
            times = "twice" if count == 2 else f"{count} times"
            own = typed(backbone) + ("=PATH" if backbone.family == "timm" else "")
            mistakes.append(
                f"each candidate needs a label of its own; got {label} {times}, where case, '.', "
                f"'_' and '-' are as one. Fix: name it once, or give one a label, LABEL={own}"
            )
    return mistakes


def _folded(label: str) -> str:
    """The same for labels that would be one folder on some systems, or one alias."""
    return alias_of(label).replace("_", "-").lower()


def typed(backbone: BackboneSpec) -> str:
    """The target that names a backbone."""
    return f"{TIMM}{backbone.model}" if backbone.family == "timm" else backbone.family


def alias_of(label: str) -> str:
    """What a label is in MLflow's registry, whose names have no dots."""
    return label.replace(".", "-")
