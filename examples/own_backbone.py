"""python -m orchestrator sweep examples/own_backbone.py:regnet --dry-run

Any timm classifier can be swept by its name: `python -m orchestrator sweep timm:regnetx_002`.
With a function, as `regnet` below, you also give it a space of its own in place of the generic one.

A family that should stand beside resnet and vit, with members by scale, is one file: what `REGNET`
below shows, as `FAMILY` in trainables/backbones/families/regnet.py, and one line in the table of
that folder's __init__.py. Sizes, patches, stems for small images: convnext.py has them.
"""

from dataclasses import replace

from orchestrator.spec import named_sweeps, spaces
from orchestrator.spec.run import SweepSpec
from trainables.backbones.adaptation import Family, LearningRates, Member


def regnet() -> SweepSpec:
    """RegNetX-200MF from scratch on digits, SGD as in its paper (Radosavovic et al. 2020)."""
    sweep = named_sweeps.family_sweep(
        "timm", model="regnetx_002", weights="none", trials=6, max_epochs=6
    )
    return replace(
        sweep,
        recipe=replace(sweep.recipe, optimizer="sgd", weight_decay=5e-5),
        space={
            "recipe.learning_rate": spaces.LogUniform(0.01, 1.0, "0.8 at batch 1024 in the paper"),
            "recipe.label_smoothing": spaces.Uniform(0.0, 0.2),
        },
    )


REGNET = Family(
    members={
        "tiny": Member(model="regnetx_002", hub="timm/regnetx_002.pycls_in1k", image_size=224),
        "small": Member(model="regnetx_016", hub="timm/regnetx_016.pycls_in1k", image_size=224),
        "base": Member(model="regnetx_080", hub="timm/regnetx_080.pycls_in1k", image_size=224),
    },
    from_scratch=LearningRates(3e-4, 3e-2, "batch norm, as a ResNet"),
    fine_tuned=LearningRates(3e-5, 3e-3, "batch norm, as a ResNet"),
    patches=(),
)
