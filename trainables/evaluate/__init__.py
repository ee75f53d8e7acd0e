"""What accuracy does not say about a finished model: each probe alone, or all in one call."""

from trainables.evaluate.attention import attention_distances
from trainables.evaluate.behaviour import (
    agreement,
    calibration,
    occlude,
    shift,
    shifted_predictions,
)
from trainables.evaluate.probes import Subject, probe, probe_trial

__all__ = [
    "Subject",
    "agreement",
    "attention_distances",
    "calibration",
    "occlude",
    "probe",
    "probe_trial",
    "shift",
    "shifted_predictions",
]
