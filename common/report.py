"""eval.json: what eval.py has measured, continued from run to run, and read by plot.py."""

import hashlib
import json

from common.command import UserError


def archived_name(path, key):
    """The name under which a report with this key is archived."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")


def continue_report(path, key):
    """The report with this key, to be continued; {} if there is none.

    A report with another key in its place is archived under a name that its key makes, and the
    one with this key comes back if it was archived before. UserError if a file is damaged.
    """
    try:
        report = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if report and report["key"] != key:
            archived = path.replace(archived_name(path, report["key"]))
            other = ", ".join(name for name in key if report["key"].get(name) != key[name])
            print(f"{path} has another {other}: it is now {archived}")
            report = {}
        if not report and archived_name(path, key).exists():
            archived_name(path, key).replace(path)
            report = json.loads(path.read_text("utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete it and run this again") from error
    return report
