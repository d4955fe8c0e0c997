"""The report of a run: a page with pictures for the browser, a table for the terminal.

Both are functions of the plain dictionary that ``refkd distill --json`` prints, and
return text; writing it to a file is the caller's. Nothing here trains or reads data.
"""

from refkd.report.html import html_report
from refkd.report.text import text_report

__all__ = ["html_report", "text_report"]
