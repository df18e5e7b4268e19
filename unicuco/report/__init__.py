"""Pictures and the HTML page of a run. ``write_report`` is the entry; matplotlib loads when something is drawn."""

from unicuco.report.page import write_report

__all__ = ["write_report"]
