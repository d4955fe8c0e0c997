"""The report of a run: a page with pictures for the browser, a table for the terminal.

Both are functions of the plain dictionary that ``refkd distill --json`` prints, and
return text; writing it to a file is the caller's. The page also takes what the run
folder holds besides (`read_attachments`). Nothing here trains or reads the data.
"""

from refkd.report.attachments import Attachments, read_attachments
from refkd.report.html import html_report
from refkd.report.text import text_report

__all__ = ["Attachments", "html_report", "read_attachments", "text_report"]
