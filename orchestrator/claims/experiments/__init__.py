"""The claims there are, by name: of each the rule is a module, its words a TOML file."""

from __future__ import annotations

import difflib

from orchestrator.claims.claim import Claim
from orchestrator.claims.experiments import (
    augmentation_helps_vit_more,
    cnn_more_shift_invariant,
    conv_stem_converges_faster,
    lr_lower_for_vit,
    small_patches_help,
    vit_needs_more_data,
)
from trainables.errors import UserError

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in map(
        Claim.of,
        (
            lr_lower_for_vit,
            small_patches_help,
            augmentation_helps_vit_more,
            conv_stem_converges_faster,
            vit_needs_more_data,
            cnn_more_shift_invariant,
        ),
    )
}


def claim_named(name: str) -> Claim:
    """Raises ``UserError`` with the near names for one that is not there."""
    if name in CLAIMS:
        return CLAIMS[name]
    near = difflib.get_close_matches(name, CLAIMS, n=2, cutoff=0.3) or list(CLAIMS)[:1]
    raise UserError(
        f"no claim {name!r}; valid: {', '.join(CLAIMS)}. Fix: did you mean {' or '.join(near)}?"
    )
