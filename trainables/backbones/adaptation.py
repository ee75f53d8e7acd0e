"""What a family states about itself: published members, and how they adapt to small images.

The families themselves are in ``families/``, one file each. Importing this loads neither torch
nor timm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.backbones.pretraining import FROM_SCRATCH, Pretraining, pretraining_of
from trainables.config import ALIKE, HUB_WEIGHTS, BackboneSpec
from trainables.errors import UserError
from trainables.spec import Spec

PATCHES = (16, 8, 4, 2, 1)
STEMS = ("auto", "original", "small")
SMALL_IMAGE = 64  # below this side, in pixels, a stem that reduces by 4 costs 15-20 points of top-1
FEWEST_TOKENS = 16

TimmArguments = Mapping[str, Any]  # keyword arguments of ``timm.create_model``


@dataclass(frozen=True, kw_only=True)
class Size:
    """A member's size, for estimates before anything is built.

    Counted once at the default geometry for 32-pixel images, ``positions`` of the feature map that
    the stem leaves, with ``train.learner.count_flops`` and ``train.measure.saved_for_backward``; a
    test counts again. ``gflops_per_image`` is one forward pass, a multiply-add counting as two, and
    ``activation_mb`` what it keeps for the backward pass in fp32, 1e6 bytes an image.
    """

    positions: int
    params_m: float
    gflops_per_image: float
    activation_mb: float


@dataclass(frozen=True, kw_only=True)
class Member:
    """One published timm model of a family.

    ``hub`` is the repository that holds its weights (``None``: none were published), ``classes``
    how many their head has (0: it has none; ``None``: not known), ``image_size`` the side in pixels
    they were trained on and ``test_image_size`` the larger one that they are published for (timm's
    ``test_input_size``; ``None``: the same), ``patch`` the published patch (or stem patch) in
    pixels, ``stride`` the published reduction of the convolutions before the tokens, and
    ``arguments`` what makes it narrower than the timm model of that name. ``size`` is ``None``
    where it is known only once the model is built.
    """

    model: str
    hub: str | None
    image_size: int
    classes: int | None = None
    test_image_size: int | None = None
    patch: int | None = None
    stride: int = 1
    size: Size | None = None
    arguments: TimmArguments = field(default_factory=dict)

    @property
    def tagged(self) -> str:
        """timm's name of the model with the tag of its weights, where they have one."""
        name = (self.hub or "").removeprefix("timm/")
        return name if name.partition(".")[0] == self.model.partition(".")[0] else self.model

    @property
    def pretraining(self) -> Pretraining | None:
        """What its published weights have learned from; ``None`` where that is not known."""
        tag = (self.hub or "").partition(".")[2]
        return pretraining_of(tag, model=self.model, classes=self.classes)

    def pretraining_data(self, weights: str) -> str | None:
        """As :attr:`pretraining`, of this member begun with ``weights``, in words."""
        if weights == "none":
            return FROM_SCRATCH
        known = self.pretraining if weights in HUB_WEIGHTS else None
        return None if known is None else str(known)


@dataclass(frozen=True, kw_only=True)
class Geometry(Spec):
    """How a backbone meets the pixels: what `plan` prints and the run's tags carry.

    ``image_size`` is the side in pixels that the model sees, ``patch`` the pixels of it per
    token and side (``None`` for families without tokens), ``tokens`` their number, ``stem``
    ``original`` or ``small`` (``None`` where there is no convolutional stem), and ``adaptation``
    ``native``, ``upsampled``, ``resized patches`` or both of the latter. ``pretraining_data`` says
    what the weights have learned from, ``none`` from scratch; ``None`` where that is not known.
    """

    family: str
    scale: str | None
    model: str
    weights: str
    image_size: int
    patch: int | None
    stem: str | None
    tokens: int | None
    adaptation: str
    pretraining_data: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Size, patch, tokens, stem and adaptation in a line."""
        parts = [f"{self.image_size} px"]
        parts += [f"patch {self.patch}"] if self.patch else []
        parts += [f"{self.tokens} tokens"] if self.tokens else []
        parts += [f"stem {self.stem}"] if self.stem else []
        return ", ".join([self.model, *parts, self.adaptation])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """Inverse of ``as_dict``; ledgers of before 2026-11-28 call the adaptation ``road``."""
        return super().from_dict({"adaptation": values.get("road"), **values})


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A family's answer to a spec: geometry without the parts common to all families."""

    patch: int | None = None
    stem: str | None = None
    tokens: int | None = None
    resized: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LearningRates:
    """AdamW's learning rates worth searching, ``low`` to ``high``; other optimizers scale them."""

    low: float
    high: float
    why: str


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """A training as it was published, in the fields of a ``Recipe``: the first trial of a search.

    ``source`` names paper and file or section, and what it was published for where that is not the
    family itself. ``batch_size`` is the whole step's, ``warmup_share`` of the full length.
    ``augment`` is the level of that kind.
    """

    source: str
    optimizer: str = "adamw"
    learning_rate: float
    batch_size: int
    weight_decay: float
    warmup_share: float
    label_smoothing: float
    augment: str
    layer_decay: float = 1.0
    head_lr_multiplier: float = 1.0

    def learning_rate_at(self, batch_size: int) -> float:
        """The rate for steps of ``batch_size`` images, rounded to three digits.

        In proportion to the batch for SGD (Goyal et al. 2017), to its square root for AdamW
        (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms").
        The root is our choice: DeiT and MAE state the linear rule for the large batches that they
        used; from there down to 64 images it would leave rates below all that is searched.
        """
        times = batch_size / self.batch_size
        power = 1.0 if self.optimizer == "sgd" else 0.5
        return float(f"{self.learning_rate * times**power:.3g}")


@dataclass(frozen=True, kw_only=True)
class ExchangedStem:
    """First layers that were exchanged for small images, which no argument of timm expresses.

    ``conv`` and ``pool`` are submodules' names: the convolution gets a square ``kernel`` and a
    ``stride`` (as published for 32 pixels by He et al. 2016, §4.2), the pool becomes an identity.
    A model with ``built_image_size`` is built at that side, in pixels, and then set to the
    geometry's own.
    """

    conv: str
    kernel: int = 3
    stride: int = 1
    pool: str | None = None
    built_image_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: published members by scale, and in what they differ from what timm publishes.

    ``adapt`` answers a spec for images of so many pixels a side, and raises ``UserError`` for what
    cannot be. ``arguments`` gives timm the geometry, and ``exchanged_stem`` is what they cannot
    express. By default a model is taken as it was published.

    ``layers`` are patterns of parameter names in forward order, for layer-wise decay: groups of
    digits number the layers within one pattern, names without a match count with the head. Empty
    where timm's own grouping is right. ``patches`` are the only ones possible (``None``: those
    that divide the image's side). ``scratch_scales`` are trained without published weights unless
    asked otherwise. ``alike`` has members by what all of their weights have learned from (``in1k``,
    ``in21k``), then by scale. ``published_scratch`` and ``published_tuned`` have one recipe an
    optimizer. In a family that ``is_convolutional`` nearly all of the work is convolutions.
    ``reference`` is the paper to cite, as authors and year with a title; empty of ``timm:MODEL``.
    """

    members: Mapping[str, Member]
    from_scratch: LearningRates
    fine_tuned: LearningRates
    alike: Mapping[str, Mapping[str, Member]] = field(default_factory=dict)
    published_scratch: tuple[PublishedRecipe, ...] = ()
    published_tuned: tuple[PublishedRecipe, ...] = ()
    adapt: Callable[[BackboneSpec, Member, int], Adapted] = lambda *_: Adapted()
    arguments: Callable[[Geometry, Member], TimmArguments] = lambda *_: {}
    exchanged_stem: Callable[[Geometry, Member], ExchangedStem | None] = lambda *_: None
    layers: tuple[str, ...] = ()
    patches: tuple[int, ...] | None = None
    is_convolutional: bool = False
    reference: str = ""
    scratch_scales: tuple[str, ...] = ("tiny",)

    def member(self, scale: str, weights: str) -> Member | None:
        """The member of ``scale`` that ``weights`` choose; ``None`` where there is none."""
        members = self.alike.get(weights, {}) if weights in ALIKE else self.members
        return members.get(scale)

    def published_recipe(self, *, scratch: bool, optimizer: str) -> PublishedRecipe | None:
        """The published recipe of this setting; ``None`` where none is on record."""
        recipes = self.published_scratch if scratch else self.published_tuned
        return next((recipe for recipe in recipes if recipe.optimizer == optimizer), None)


def cut_into_patches(member: Member, side: int, patch: int | None) -> Adapted:
    """Square patches of ``patch`` pixels a side; raises ``UserError`` where they leave a rest."""
    if patch is None or patch < 1 or side % patch:
        divisors = ", ".join(str(divisor) for divisor in PATCHES if side % divisor == 0)
        raise UserError(
            f"backbone.patch must divide backbone.image_size; got {patch} and {side}. "
            f"Fix: --set backbone.patch=P with P one of {divisors}"
        )
    tokens = (side // patch) ** 2
    fix = "a smaller --set backbone.patch=P or a larger --set backbone.image_size=PX"
    return Adapted(
        patch=patch,
        tokens=tokens,
        resized=patch != member.patch,
        warnings=few_tokens(f"{member.model} at {side} px and patch {patch}", tokens, fix),
    )


def few_tokens(model: str, tokens: int, fix: str) -> tuple[str, ...]:
    """The warning for a sequence too short to be worth attention; empty when it is not."""
    if tokens >= FEWEST_TOKENS:
        return ()
    plural = "token" if tokens == 1 else "tokens"
    return (f"{model} sees {tokens} {plural}, fewer than {FEWEST_TOKENS}. Fix: {fix}",)


def choose_stem(spec: BackboneSpec, side: int) -> str:
    """``auto`` is ``small`` below 64 px without weights: trained stems keep what they learned."""
    if spec.stem != "auto":
        return spec.stem
    return "small" if spec.weights == "none" and side < SMALL_IMAGE else "original"


def default_patch(
    spec: BackboneSpec, member: Member, side: int, candidates: tuple[int, ...] = PATCHES
) -> int | None:
    """The published patch for trained weights at the side that they were trained on, or a larger
    one: kernels that fit are not resized. Else the :func:`largest_patch` of the ``candidates``."""
    trained = spec.weights != "none" and member.patch is not None and side >= member.image_size
    if trained and side % (member.patch or 1) == 0:
        return member.patch
    return largest_patch(side, candidates)


def largest_patch(side: int, candidates: tuple[int, ...] = PATCHES) -> int | None:
    """The largest patch that cuts ``side`` pixels into at least 8 x 8 tokens."""
    fitting = [patch for patch in candidates if side % patch == 0]
    roomy = [patch for patch in fitting if side // patch >= 8]
    return max(roomy) if roomy else min(fitting, default=None)
