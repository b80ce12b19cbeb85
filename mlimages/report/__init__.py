"""A check as one self-contained HTML page."""

from mlimages.report.check_page import write_report

__all__ = ["write_report"]
