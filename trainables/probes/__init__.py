"""What accuracy does not say about a finished model: each probe alone, or all in one call."""

from trainables.probes.attention import attention_distances
from trainables.probes.calibration import calibration
from trainables.probes.occlusion import occlude
from trainables.probes.probe import Subject, probe, probe_trial
from trainables.probes.shift import agreement, shift, shifted_predictions

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
