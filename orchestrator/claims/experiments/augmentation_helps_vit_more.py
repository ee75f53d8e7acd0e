"""Does a ViT gain more from stronger augmentation than a ResNet does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Preset, Setting
from orchestrator.claims.effects import Measured, Picture, lines, points
from orchestrator.claims.results import RATE, TrialResult, by_level, complete, must_have_learned
from trainables.config import AUGMENT_LEVELS

Array = np.ndarray
FAMILIES = ("vit", "resnet")
# Least-squares slope over equally spaced levels, times the way from the first to the last.
_STEPS = np.arange(len(AUGMENT_LEVELS)) - (len(AUGMENT_LEVELS) - 1) / 2
WEIGHTS = _STEPS / (_STEPS**2).sum() * (len(AUGMENT_LEVELS) - 1)


def arms(setting: Setting) -> list[Arm]:
    """Architecture x strength."""
    return [
        Arm(
            family=family,
            epochs=setting.preset.epochs,
            levels={"recipe.augment": level, RATE: rate},
        )
        for level in AUGMENT_LEVELS
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """The interaction: what the way from none to heavy gives a ViT, less what it gives a ResNet."""
    results, seeds, notes = complete(results)
    tables = by_level(results, FAMILIES, "recipe.augment", AUGMENT_LEVELS)  # (levels, n) each
    must_have_learned(
        {f: float(t.mean(axis=1).max()) for f, t in tables.items()}, results[0].chance
    )
    gains = {family: WEIGHTS @ table for family, table in tables.items()}  # (n,)
    return Measured(
        seeds=seeds,
        effects=(points("gain of ViT from none to heavy, over that of ResNet",
                        gains["vit"] - gains["resnet"]),),
        others=(
            *(points(f"gain of {family} from none to heavy", gains[family])
              for family in FAMILIES),
            *(points(f"gain of ViT from none to {level}, over that of ResNet",
                     tables["vit"][i] - tables["vit"][0]
                     - tables["resnet"][i] + tables["resnet"][0])
              for i, level in enumerate(AUGMENT_LEVELS) if i),
        ),
        pictures=lambda: [_picture(tables)],
        notes=notes,
    )  # fmt: skip


def _picture(tables: dict[str, Array]) -> Picture:
    return Picture(
        title="Accuracy against strength of augmentation",
        x_label="augmentation",
        series=lines(range(len(AUGMENT_LEVELS)), {name: rows.T for name, rows in tables.items()}),
        ticks=AUGMENT_LEVELS,
    )


CLAIM = Claim(
    name="augmentation-helps-vit-more",
    statement="A ViT wants more aggressive augmentation than a ResNet.",
    source="DeiT's recipe (Touvron et al. 2021), and the explanation that a ViT has weaker "
    "inductive biases and must learn from data what convolution has built in.",
    literature_for=(
        "Touvron et al. 2021 (DeiT): without its strong augmentations a ViT loses much of its "
        "accuracy on ImageNet.",
        "Steiner et al. 2022 (How to train your ViT?): augmentation and regularisation with more "
        "compute can replace ten times more data.",
    ),
    literature_against=(
        "Wightman et al. 2021 (ResNet strikes back): ResNet-50 gains from the same strong recipe.",
        "Steiner et al. 2022: small ViTs and short training can lose by it.",
    ),
    families=FAMILIES,
    factors={
        "architecture": "ViT, ResNet",
        "augmentation": "none; light: shifts and mirroring; medium: and rotation by 10 degrees, "
        "zoom, colour; heavy: by 20 degrees, stronger, and random erasing",
    },
    presets={
        "smoke": Preset(epochs=12, train_images=2000, val_images=1000, seeds=4, batch_size=32),
        "standard": Preset(epochs=60, train_images=10_000, val_images=2000, seeds=5),
        "full": Preset(epochs=150, train_images=None, val_images=5000, seeds=10,
                       rates=(0.5, 1, 2)),
    },
    statistic="Final validation accuracy against strength (none, light, medium, heavy as 0, 1, 2, "
    "3): the least-squares line's rise from none to heavy, of the ViT minus that of the ResNet, "
    "seed by seed. Whether augmentation helps at all is another question.",
    unit="points",
    smallest_effect=0.01,
    supported="From none to heavy the ViT is shown to gain over one point more than the ResNet.",
    refuted="It is shown to gain less than one point more, or less than the ResNet.",
    undetermined="Neither is shown: too few seeds, or seeds too unlike each other.",
    arms=arms,
    measure=measure,
)  # fmt: skip
