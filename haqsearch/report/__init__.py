"""The HTML report of a run: one self-contained page written from the files of its folder.

``write_report(folder)`` is the whole interface. Importing this package loads neither plotly nor pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haqsearch.report.records import ReportError
    from haqsearch.report.run_page import write_report

__all__ = ["ReportError", "write_report"]


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from haqsearch.report.run_page import write_report

        return write_report
    if name == "ReportError":
        from haqsearch.report.records import ReportError

        return ReportError
    raise AttributeError(f"module 'haqsearch.report' has no attribute {name!r}")
