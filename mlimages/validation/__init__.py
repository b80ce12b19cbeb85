"""One pass over label files: what is broken, doubled, leaking or odd."""

from mlimages.validation.codes import ERRORS, Code, Finding, Thresholds
from mlimages.validation.outcome import Measures, Report, write_outcome
from mlimages.validation.survey import check, duplicate_groups

__all__ = [
    "ERRORS",
    "Code",
    "Finding",
    "Measures",
    "Report",
    "Thresholds",
    "check",
    "duplicate_groups",
    "write_outcome",
]
