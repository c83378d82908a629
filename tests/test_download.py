"""Proves data/download.py against a server of our own that misbehaves: nothing half-written is ever taken for data, and a second run completes.

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
from checkpoint import UserError
from command import Command, copy_project
from data.download import download
from data.tokenizer import gpt2_encoding

TEXT = "".join(f"Line {i} of a play that nobody wrote.\n" for i in range(20_000)).encode()  # 0.8 MB
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


class Server(ThreadingHTTPServer):
    """Behaves as server.manner says, one request after the other; notes what it was asked."""

    manner, asked = "well", []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        manner, wanted = self.server.manner, self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if match := re.search(r"finewebedu_(\w+).bin", self.path):
            body = SHARDS[match[1]] if manner != "wrong magic" else shard([1, 2, 3], magic=7)
        else:
            body = TEXT[::-1] if manner == "another file" else TEXT
        if manner == "missing":
            return self.send_error(404)
        if manner == "a login page" and not self.path.startswith("/login"):
            self.send_response(302)
            self.send_header("Location", "/login")
            return self.end_headers()
        if manner == "published hash" and self.path.startswith("/text"):
            self.send_response(302)
            self.send_header("X-Linked-ETag", f'"{"0" * 64}"')
            self.send_header("Location", "/elsewhere")
            return self.end_headers()
        start = int(wanted[6:-1]) if wanted and manner != "no ranges" else 0
        if start >= len(body) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if manner == "a login page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        if manner == "cut short":
            body = body[: len(body) // 3]
        for i in range(0, len(body), 50_000):
            self.wfile.write(body[i : i + 50_000])
            if manner == "slow":
                time.sleep(0.3)
            if manner == "silent":
                time.sleep(3)


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.manner = [], "well"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def folder(project):
    """Where the command writes; empty before every test."""
    folder = project / "data/shakespeare"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def prepare(project, server, name="shakespeare", *flags, sha256=SHA256, wait=True):
    address = f"http://127.0.0.1:{server.server_port}"
    code = (
        "import data.prepare as p, checkpoint\n"
        f"p.TEXTS['shakespeare'] = (('{address}/text.txt', {sha256!r}), None)\n"
        f"p.SHARDS = '{address}/finewebedu_%s_%06d.bin'\n"
        "checkpoint.run_command(p.main)\n"
    )
    command = Command(project, "-c", code, name, *flags)
    return command.finish(60) if wait else command


def test_the_file_as_it_is(project, server, folder):
    """Downloaded once, prepared as characters; a second run downloads nothing."""
    assert prepare(project, server).returncode == 0
    assert (folder / "text.txt").read_bytes() == TEXT and not (folder / "text.txt.part").exists()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["tokenizer"]["kind"] == "char" and sum(meta["tokens"].values()) == len(TEXT) and meta["text_sha256"] == SHA256
    assert prepare(project, server).returncode == 0 and len(server.asked) == 1


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
def test_what_goes_wrong_is_said_and_mended(project, server, folder, manner, words):
    server.manner = manner
    result = prepare(project, server, sha256=None if manner == "published hash" else SHA256)
    assert result.returncode == 2 and words in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not (folder / "text.txt").exists() and not (folder / "meta.json").exists()
    server.manner = "well"
    assert prepare(project, server).returncode == 0
    assert (folder / "text.txt").read_bytes() == TEXT
    assert server.asked[-1][1] == (f"bytes={len(TEXT) // 3}-" if manner == "cut short" else None)


@pytest.mark.parametrize("then", ["well", "no ranges"])
def test_killed_while_downloading(project, server, folder, then):
    """What was fetched is kept; the next run goes on from there if the server can, and starts again if not."""
    server.manner = "slow"
    command = prepare(project, server, wait=False)
    part = folder / "text.txt.part"
    command.wait_for(lambda: part.exists() and part.stat().st_size > 100_000)
    command.send(signal.SIGKILL)
    command.finish()
    kept = (folder / "text.txt.part").stat().st_size
    assert 0 < kept < len(TEXT) and not (folder / "text.txt").exists()
    server.manner = then
    assert prepare(project, server).returncode == 0
    assert server.asked[-1] == ("/text.txt", f"bytes={kept}-")
    assert (folder / "text.txt").read_bytes() == TEXT


def test_killed_before_it_was_renamed(project, server, folder):
    """All is there, and only the hash is left to be looked at."""
    folder.mkdir()
    (folder / "text.txt.part").write_bytes(TEXT)
    assert prepare(project, server).returncode == 0 and (folder / "text.txt").read_bytes() == TEXT


def test_a_part_of_something_longer(project, server, folder):
    folder.mkdir()
    (folder / "text.txt.part").write_bytes(TEXT + b"and more")
    result = prepare(project, server)
    assert result.returncode == 2 and "another file" in result.stderr
    assert prepare(project, server).returncode == 0 and (folder / "text.txt").read_bytes() == TEXT


def test_a_server_that_falls_silent(server, tmp_path):
    server.manner = "silent"
    with pytest.raises(UserError, match="run this again to go on"):
        download(f"http://127.0.0.1:{server.server_port}/text.txt", tmp_path / "text.txt", SHA256, timeout=0.5)
    assert not (tmp_path / "text.txt").exists() and (tmp_path / "text.txt.part").stat().st_size > 0


def test_no_network(project, folder, server):
    server.shutdown()
    server.server_close()  # nobody listens there now
    result = prepare(project, server)
    assert result.returncode == 2 and "is there a network?" in result.stderr and result.stderr.count("\n") == 1


def test_shards(project, server, monkeypatch):
    """GPT-2 tokens ready made: the header is checked and skipped, blocks come from all shards and never across two."""
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
    assert ((first <= 900) | ((first >= 1000) & (first <= 1400))).all() and {0, 900, 1000, 1400} <= set(first.tolist())
    assert dataset.validation_blocks(100)[:, 0].tolist() == [40_000, 40_100, 40_200]
    server.manner = "wrong magic"
    result = prepare(project, server, "fineweb-edu", "--shards", "3")
    assert result.returncode == 2 and "no complete file of tokens" in result.stderr
