"""Checks data/download.py against a server of our own that misbehaves: nothing half-written is ever
taken for data, and a second run completes.

The real command runs, with the addresses of the public texts replaced by those of the server.
"""

import hashlib
import json
import re
import shutil
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import data.dataset
from command import Command, copy_project
from common.command import UserError
from data.download import download
from data.tokenizer import gpt2_encoding

LINES = [f"Line {i} of a play that nobody wrote.\n" for i in range(20_000)]
TEXT = "".join(LINES).encode()  # 0.8 MB
SHA256 = hashlib.sha256(TEXT).hexdigest()


def shard(tokens, magic=20240520):
    header = np.zeros(256, np.int32)
    header[:3] = magic, 1, len(tokens)
    return header.tobytes() + np.array(tokens, np.uint16).tobytes()


SHARDS = {
    "train_000001": shard(range(1000)),
    "train_000002": shard(range(1000, 1500)),
    "val_000000": shard(range(40_000, 40_300)),
}

# ------------------------------------------------------------------------------------------------
# the server


class Server(ThreadingHTTPServer):
    """Behaves as server.manner says, and records every request: (path, Range header)."""

    manner, requests = "well", []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        manner, wanted = self.server.manner, self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if manner == "missing":
            return self.send_error(404)
        if manner == "a login page" and not self.path.startswith("/login"):
            return self.redirect("/login")
        if manner == "published hash" and self.path.startswith("/text"):
            return self.redirect("/elsewhere", {"X-Linked-ETag": f'"{"0" * 64}"'})
        body = self.content()
        start = int(wanted[6:-1]) if wanted and manner != "no ranges" else 0
        if start >= len(body) and start:
            return self.begin(416, {"Content-Range": f"bytes */{len(body)}"})
        page = manner == "a login page"
        self.begin(206 if start else 200, {
            "Content-Type": "text/html" if page else "application/octet-stream",
            "Content-Length": str(len(body) - start),
        })
        body = body[start:]
        self.send(body[: len(body) // 3] if manner == "cut short" else body)

    def content(self):
        """What is at this address."""
        match = re.search(r"finewebedu_(\w+).bin", self.path)
        if match and self.server.manner == "wrong magic":
            return shard([1, 2, 3], magic=7)
        if match:
            return SHARDS[match[1]]
        return TEXT[::-1] if self.server.manner == "another file" else TEXT

    def begin(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def redirect(self, location, headers={}):
        self.begin(302, headers | {"Location": location})

    def send(self, body):
        pause = {"slow": 0.3, "silent": 3}.get(self.server.manner, 0)
        for i in range(0, len(body), 50_000):
            self.wfile.write(body[i : i + 50_000])
            time.sleep(pause)


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.manner = [], "well"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def address_of(server):
    return f"http://127.0.0.1:{server.server_port}"


# ------------------------------------------------------------------------------------------------
# the command


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def folder(project):
    """Where the command writes; empty before every test."""
    folder = project / "data/shakespeare"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def start_preparing(project, server, *arguments, sha256=SHA256):
    """`python data/prepare.py ARGUMENTS`, with the server's addresses: a Command."""
    address = address_of(server)
    code = (
        "import data.prepare as p\n"
        "from common.command import run_command\n"
        f"p.TEXTS['shakespeare'] = (('{address}/text.txt', {sha256!r}), None)\n"
        f"p.SHARDS = '{address}/finewebedu_%s_%06d.bin'\n"
        "run_command(p.main)\n"
    )
    return Command(project, "-c", code, *(arguments or ["shakespeare"]), "--overwrite")


def prepare(project, server, *arguments, sha256=SHA256):
    """Its result."""
    return start_preparing(project, server, *arguments, sha256=sha256).finish(60)


def test_the_file_as_it_is(project, server, folder):
    """Downloaded once, prepared as characters; a second run downloads nothing."""
    assert prepare(project, server).returncode == 0
    assert (folder / "text.txt").read_bytes() == TEXT
    assert not (folder / "text.txt.part").exists()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["tokenizer"]["kind"] == "char" and meta["text_sha256"] == SHA256
    assert sum(meta["tokens"].values()) == len(TEXT)
    assert prepare(project, server).returncode == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "manner, words",
    [
        ("cut short", "cut short"),
        ("another file", "SHA-256 differs"),
        ("a login page", "web page"),
        ("missing", "404"),
        ("published hash", "SHA-256 differs"),
    ],
)
def test_a_failure_is_one_line_and_the_next_run_repairs_it(project, server, folder, manner, words):
    server.manner = manner
    sha256 = None if manner == "published hash" else SHA256
    result = prepare(project, server, sha256=sha256)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert words in result.stderr.splitlines()[-1]
    assert not (folder / "text.txt").exists() and not (folder / "meta.json").exists()
    server.manner = "well"
    assert prepare(project, server).returncode == 0
    assert (folder / "text.txt").read_bytes() == TEXT
    resumed_at = f"bytes={len(TEXT) // 3}-" if manner == "cut short" else None
    assert server.requests[-1][1] == resumed_at


@pytest.mark.parametrize("then", ["well", "no ranges"])
def test_killed_while_downloading(project, server, folder, then):
    """What was fetched is kept. The next run goes on from there if the server can, and starts
    again if not."""
    server.manner = "slow"
    command = start_preparing(project, server)
    part = folder / "text.txt.part"
    command.wait_for(lambda: part.exists() and part.stat().st_size > 100_000)
    command.send(signal.SIGKILL)
    command.finish()
    kept = part.stat().st_size
    assert 0 < kept < len(TEXT) and not (folder / "text.txt").exists()
    server.manner = then
    assert prepare(project, server).returncode == 0
    assert server.requests[-1] == ("/text.txt", f"bytes={kept}-")
    assert (folder / "text.txt").read_bytes() == TEXT


def test_killed_before_it_was_renamed(project, server, folder):
    """All is there, and only the hash is left to be checked."""
    folder.mkdir()
    (folder / "text.txt.part").write_bytes(TEXT)
    assert prepare(project, server).returncode == 0
    assert (folder / "text.txt").read_bytes() == TEXT


def test_a_part_of_something_longer(project, server, folder):
    folder.mkdir()
    (folder / "text.txt.part").write_bytes(TEXT + b"and more")
    result = prepare(project, server)
    assert result.returncode == 2 and "another file" in result.stderr
    assert prepare(project, server).returncode == 0
    assert (folder / "text.txt").read_bytes() == TEXT


def test_a_server_that_falls_silent(server, tmp_path):
    server.manner = "silent"
    path = tmp_path / "text.txt"
    with pytest.raises(UserError, match="run this again to go on"):
        download(f"{address_of(server)}/text.txt", path, SHA256, timeout=0.5)
    assert not path.exists() and (tmp_path / "text.txt.part").stat().st_size > 0


def test_no_network(project, folder, server):
    server.shutdown()
    server.server_close()  # nobody listens there now
    result = prepare(project, server)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "is there a network?" in result.stderr


def test_shards(project, server, monkeypatch):
    """GPT-2 tokens ready made: the header is checked and skipped, and blocks come from all shards
    and never across two."""
    try:
        gpt2_encoding()
    except UserError:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")
    assert prepare(project, server, "fineweb-edu", "--shards", "2").returncode == 0
    monkeypatch.setattr(data.dataset, "FOLDER", project / "data")
    dataset = data.dataset.Dataset("fineweb-edu")
    assert dataset.meta["tokens"] == {"train": 1500, "val": 300}
    blocks = dataset.batch("train", 4000, 100)
    assert (blocks[:, 1:] - blocks[:, :-1] == 1).all()  # every token follows the one before it
    first = blocks[:, 0]
    assert ((first <= 900) | ((first >= 1000) & (first <= 1400))).all()
    assert {0, 900, 1000, 1400} <= set(first.tolist())
    assert dataset.validation_blocks(100)[:, 0].tolist() == [40_000, 40_100, 40_200]
    server.manner = "wrong magic"
    result = prepare(project, server, "fineweb-edu", "--shards", "3")
    assert result.returncode == 2 and "no complete file of tokens" in result.stderr
