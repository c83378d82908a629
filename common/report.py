"""eval.json: what eval.py has measured, continued from run to run, and read by plot.py.

A user may have edited the file, so every field that is used is checked: read_report.
"""

import hashlib
import json
import os
from pathlib import Path

from common.checkpoint import LABELS
from common.command import UserError
from common.files import field, read_json, replace
from data.stories import KINDS

MEASURES = ("perplexity", "entropy", "entropy_4grams", "distinct_4grams")
STORY_MEASURES = ("right", "mistakes")
WRITERS = ("judge", "dfm", "fsdfm")  # in the table of speeds

# ------------------------------------------------------------------------------------------------
# checking


def check_measures(row, where):
    """The measures of a row of samples, or of real text."""
    names = MEASURES + (STORY_MEASURES if "right" in row else ())
    for name in names:
        field(row, name, where, lowest=0)
        field(row, f"{name}_error", where, lowest=0)
    field(row, "corpus_perplexity", where, lowest=0)
    if "right" in row:
        kinds = field(row, "mistakes_by_kind", where, dict)
        for kind in KINDS:
            field(kinds, kind, f"mistakes_by_kind of {where}", lowest=0)
        for name in field(row, "variety", where, dict):
            field(row["variety"], name, f"variety of {where}", lowest=0)
        field(row, "new", where, lowest=0, optional=True)


def check_row(row, where):
    """A row of samples."""
    if field(row, "model", where, str) not in LABELS:
        raise ValueError(f"model of {where} is {row['model'][:40]}")
    field(row, "steps", where, int, 1)
    field(row, "samples", where, int, 1)
    field(row, "temperature", where, lowest=1e-9)
    field(row, "seconds_per_sample", where, lowest=0)
    field(row, "network", where, str)
    field(row, "update", where, str, optional=True)
    field(row, "shared_noise", where, bool, optional=True)
    tokens = field(row, "typical", where, list, optional=True) or []
    if not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise ValueError(f"typical of {where} has other things than tokens")
    check_measures(row, where)


def check_report(report):
    """ValueError, with the field, if something in a report is not what eval.py writes."""
    field(report, "key", "the report", dict)
    field(report, "length", "the report", int, 1)
    for number, row in enumerate(field(report, "rows", "the report", list), start=1):
        check_row(row, f"row {number}")
    if report["rows"]:
        check_measures(field(report, "real", "the report", dict), "real")
    if "speed_key" in report:
        for number, row in enumerate(field(report, "speed", "the report", list), start=1):
            where = f"row {number} of speed"
            if field(row, "model", where, str) not in WRITERS:
                raise ValueError(f"model of {where} is {row['model'][:40]}")
            for name in ("network_calls", "seconds", "texts", "tokens_per_second"):
                field(row, name, where, lowest=0)


def read_report(path):
    """The report in a file, checked. UserError if it is damaged; FileNotFoundError if there is
    none. The file stays where it is."""
    try:
        report = read_json(path)
        check_report(report)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run eval.py again") from error
    return report


# ------------------------------------------------------------------------------------------------
# going on with a report


def archived_name(path, key):
    """The name under which a report with this key is archived."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")


def continue_report(path, key):
    """The report with this key, to be continued; {} if there is none.

    A report with another key in its place is archived under a name that its key makes, and the
    one with this key comes back if it was archived before. UserError if a file is damaged.
    """
    path = Path(os.path.realpath(path))  # of a link, the target is archived: it stays one
    report = read_report(path) if path.exists() else {}
    if report and report["key"] != key:
        archived = archived_name(path, report["key"])
        replace(path, archived)
        other = ", ".join(name for name in key if report["key"].get(name) != key[name])
        print(f"{path} has another {other}: it is now {archived}")
        report = {}
    archive = archived_name(path, key)
    if not report and archive.exists():
        report = read_report(archive)
        replace(archive, path)
    return report
