"""Downloads: the public texts that data/prepare.py knows by name, and how they are fetched safely.

A file is written to NAME.part, and renamed when it is complete: it has the right length, it has
the right SHA-256 if one is published, and it is not a web page. An interrupted download resumes
where it stopped, if the server supports that. Only the standard library is used.

Plumbing, to be skipped on a first reading.
"""

import http.client
import re
import urllib.error
import urllib.request

from tqdm import tqdm

from common.command import UserError
from common.files import file_hash, make_folder, must_be_ordinary, replace

HUB = "https://huggingface.co/datasets"
STORIES = f"{HUB}/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4"
WEB_TEXT = f"{HUB}/stanford-cs336/owt-sample/resolve/main/owt"
SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WIKITEXT = "https://wikitext.smerity.com/wikitext-103-raw-v1.zip#wikitext-103-raw/wiki"
WIKITEXT_SHA256 = "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"

# {name: (training file, held-out file)}. Each file is (address, SHA-256 or None if unknown).
# The held-out file is None where the tail of the training file is held out instead.
# ADDRESS#MEMBER is a member of a zip archive.
TEXTS = {
    "shakespeare": ((SHAKESPEARE, SHAKESPEARE_SHA256), None),
    "tinystories": ((f"{STORIES}-train.txt", None), (f"{STORIES}-valid.txt", None)),
    "wikitext103": (
        (f"{WIKITEXT}.train.raw", WIKITEXT_SHA256),
        (f"{WIKITEXT}.valid.raw", WIKITEXT_SHA256),
    ),
    "openwebtext": ((f"{WEB_TEXT}_train.txt.gz", None), (f"{WEB_TEXT}_valid.txt.gz", None)),
}

# FineWeb-Edu in GPT-2's tokens, 100 million tokens a file: ("train", 1), ... and ("val", 0).
SHARDS = f"{HUB}/kjj0/finewebedu10B-gpt2/resolve/main/finewebedu_%s_%06d.bin"


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects. Records the SHA-256 that the Hugging Face hub sends with a redirect."""

    sha256 = None

    def redirect_request(self, request, file, code, message, headers, address):
        published = (headers.get("X-Linked-ETag") or "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", published):
            self.sha256 = published
        return super().redirect_request(request, file, code, message, headers, address)


def download(address, path, sha256=None, timeout=30):
    """Downloads `address` to the file `path` (a Path), unless that file exists.

    sha256:  the expected SHA-256 in hexadecimal; by default the one the server publishes, if any.
    timeout: seconds without any data until the download fails.
    UserError if the download fails. What has been received is kept for the next try, unless it
    turns out to be another file.
    """
    if path.exists():
        return
    make_folder(path.parent)
    part = path.with_name(path.name + ".part")
    must_be_ordinary(part)
    redirects = Redirects()
    try:
        total = fetch(address, part, path.name, redirects, timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise UserError(
                f"{address} cannot be downloaded: the server says {error.code} {error.reason}"
            ) from error
        # 416, "range not satisfiable": the file ends where `part` ends, or before
        total = int(error.headers.get("Content-Range", "*/0").rpartition("/")[2])
    except (
        urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException
    ) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{address} cannot be downloaded ({reason}): is there a network? "
            f"{size_of(part):,} bytes are kept, run this again to go on"
        ) from error
    check_length(address, part, total)
    check_hash(address, part, sha256 or redirects.sha256)
    replace(part, path)


def size_of(path):
    """Bytes of a file; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def fetch(address, part, name, redirects, timeout):
    """Appends to the file `part` the bytes that it lacks.

    Returns the length of the complete file, or None if the server does not send it.
    """
    have = size_of(part)
    headers = {"User-Agent": "nanoDFM"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(address, headers=headers)
    opener = urllib.request.build_opener(redirects)
    with opener.open(request, timeout=timeout) as response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise UserError(
                f"{address} sends a web page instead of the file: "
                "is there a login page between you and the network?"
            )
        if have and response.status != 206:  # the server cannot resume: it sends the whole file
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, desc=f"downloading {name}", unit="B", unit_scale=True)
        with part.open("ab" if have else "wb") as file, bar:
            while block := response.read1(2**20):
                file.write(block)
                bar.update(len(block))
    return total


def check_length(address, part, total):
    """UserError if `part` does not have `total` bytes; a longer one is deleted."""
    size = part.stat().st_size
    if total is None or size == total:
        return
    if size > total:
        part.unlink()
        raise UserError(f"{part} was of another file, and is deleted: run this again")
    raise UserError(
        f"the download of {address} was cut short, {size:,} of {total:,} bytes: "
        "run this again to go on"
    )


def check_hash(address, part, sha256):
    """UserError if `part` does not have this SHA-256, if there is one; it is then deleted."""
    if sha256 and file_hash(part) != sha256:
        part.unlink()
        raise UserError(
            f"what {address} sent is not the published file (its SHA-256 differs), "
            "and is deleted: run this again"
        )
