"""One pass over label files: what is broken, doubled, leaking or odd."""

from mlimages.validation.codes import ERRORS, Code, Finding, Thresholds
from mlimages.validation.findings import Findings
from mlimages.validation.mending import Move, carry_out, plan_moves
from mlimages.validation.outcome import Measures, Report, write_outcome
from mlimages.validation.survey import check, duplicate_groups, sound_pictures

__all__ = [
    "ERRORS",
    "Code",
    "Finding",
    "Findings",
    "Measures",
    "Move",
    "Report",
    "Thresholds",
    "carry_out",
    "check",
    "duplicate_groups",
    "plan_moves",
    "sound_pictures",
    "write_outcome",
]
