"""The public texts that data/prepare.py knows by name, and how a file is fetched so that a bad network can do no harm.

A file is written to NAME.part and renamed when it is complete: of the right length, with the right SHA-256 where one is
published, and no web page in its stead. A download that was cut short goes on where it stopped, if the server allows.
Only the standard library is used. Read next: prepare.py.
"""

import hashlib
import http.client
import re
import urllib.error
import urllib.request

from tqdm import tqdm

from checkpoint import UserError

HUB = "https://huggingface.co/datasets"
STORIES = f"{HUB}/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4"
WEB_TEXT = f"{HUB}/stanford-cs336/owt-sample/resolve/main/owt"

# name -> the files of the training text and of the held-out text (None: a tail of the other), (address, SHA-256 if we know one) each
TEXTS = {
    "shakespeare": (
        ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
        None,
    ),
    "tinystories": ((f"{STORIES}-train.txt", None), (f"{STORIES}-valid.txt", None)),
    "wikitext103": (
        ("https://wikitext.smerity.com/wikitext-103-raw-v1.zip#wikitext-103-raw/wiki.train.raw", "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"),
        ("https://wikitext.smerity.com/wikitext-103-raw-v1.zip#wikitext-103-raw/wiki.valid.raw", "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"),
    ),
    "openwebtext": ((f"{WEB_TEXT}_train.txt.gz", None), (f"{WEB_TEXT}_valid.txt.gz", None)),
}
SHARDS = f"{HUB}/kjj0/finewebedu10B-gpt2/resolve/main/finewebedu_%s_%06d.bin"  # GPT-2 tokens ready made, 100M a file; "train" from 1 on, "val" 0


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and notes the SHA-256 that the Hugging Face hub names in the answer that redirects."""

    sha256 = None

    def redirect_request(self, request, file, code, message, headers, address):
        published = (headers.get("X-Linked-ETag") or "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", published):
            self.sha256 = published
        return super().redirect_request(request, file, code, message, headers, address)


def download(address, path, sha256=None, timeout=30):
    """Fetches `address` into the file `path`, unless it is there. UserError if that fails; what has been fetched is kept for the next try."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "nanoDFM"} | ({"Range": f"bytes={have}-"} if have else {}))
    redirects = Redirects()
    try:
        with urllib.request.build_opener(redirects).open(request, timeout=timeout) as response:
            if "text/html" in response.headers.get("Content-Type", ""):
                raise UserError(f"{address} answers with a web page instead of the file: is there a login page between you and the network?")
            if have and response.status != 206:  # the server does not resume
                have = 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            bar = tqdm(total=total, initial=have, desc=path.name, unit="B", unit_scale=True)
            with part.open("ab" if have else "wb") as file, bar:
                while block := response.read1(2**20):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # "range not satisfiable": nothing comes after what is there
            raise UserError(f"{address} cannot be downloaded: the server says {error.code} {error.reason}") from error
        total = int(error.headers.get("Content-Range", "*/0").rpartition("/")[2])
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        got = part.stat().st_size if part.exists() else 0
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{address} cannot be downloaded ({reason}): is there a network? {got:,} bytes are kept, run this again to go on") from error
    size = part.stat().st_size
    if total is not None and size > total:
        part.unlink()
        raise UserError(f"{part} was of another file, and is deleted: run this again")
    if total is not None and size < total:
        raise UserError(f"the download of {address} was cut short, {size:,} of {total:,} bytes: run this again to go on")
    expected = sha256 or redirects.sha256
    with part.open("rb") as file:
        if expected and hashlib.file_digest(file, "sha256").hexdigest() != expected:
            part.unlink()
            raise UserError(f"what {address} sent is not the published file (its SHA-256 differs), and is deleted: run this again")
    part.rename(path)
