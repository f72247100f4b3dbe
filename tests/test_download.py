"""Models by path, name or URL, from a real HTTPS server on this machine."""

import hashlib
import http.server
import itertools
import os
import shutil
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils import download
from utils.download import fetch, find_model
from utils.files import file_sha256

CONTENT = bytes(range(256)) * 4000  # 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT under /model.pth, by range where asked, and notes the ranges."""

    ranges, broken_answers, cut, understands_ranges = [], 0, 300_000, True

    def do_GET(self):
        cls = type(self)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/model.pth")
            self.end_headers()
            return
        if self.path != "/model.pth":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        cls.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and cls.understands_ranges:
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206)
            body = CONTENT[start:]
        else:
            self.send_response(200)
            body = CONTENT
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cls.broken_answers:
            cls.broken_answers -= 1
            body = body[:self.cut]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test server's certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                   check=True, capture_output=True)
    return folder


@pytest.fixture
def server(certificate, monkeypatch):
    """Its address; the system trusts its certificate during the test."""
    monkeypatch.setattr(Handler, "ranges", [])
    monkeypatch.setattr(Handler, "broken_answers", 0)
    monkeypatch.setattr(Handler, "understands_ranges", True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_model_is_downloaded_once(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{server}/model.pth#sha256={SHA256.upper()}"
    path = find_model(url)
    assert path.read_bytes() == CONTENT and path.is_relative_to(tmp_path / "cache")
    assert "100%" in capsys.readouterr().err  # the progress bar
    assert find_model(url) == path
    assert Handler.ranges == [None]
    assert files_in(path.parent) == [path]


def test_damaged_cache_is_downloaded_again(server, tmp_path):
    path = fetch(f"{server}/model.pth", SHA256, tmp_path)
    path.write_bytes(b"damaged")
    assert fetch(f"{server}/model.pth", SHA256, tmp_path).read_bytes() == CONTENT


def test_connection_that_breaks_is_taken_up_again(server, tmp_path):
    Handler.broken_answers = 2
    assert fetch(f"{server}/model.pth", SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [None, "bytes=300000-", "bytes=600000-"]


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path, monkeypatch):
    sizes = itertools.cycle([300_000, 200_000])
    monkeypatch.setattr(Handler, "understands_ranges", False)
    monkeypatch.setattr(Handler, "broken_answers", 100)
    monkeypatch.setattr(Handler, "cut", property(lambda _: next(sizes)))
    with pytest.raises(OSError, match="broke off after .* bytes; run again"):
        fetch(f"{server}/model.pth", SHA256, tmp_path)
    assert len(Handler.ranges) <= 1 + download.ATTEMPTS


def test_two_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: fetch(f"{server}/model.pth", SHA256, tmp_path), range(2)))
    assert found[0] == found[1] and found[0].read_bytes() == CONTENT
    assert Handler.ranges == [None]


def part_of(folder):
    return folder / f"{SHA256[:12]}-model.pth.part"


def test_earlier_part_is_continued(server, tmp_path):
    part_of(tmp_path).write_bytes(CONTENT[:700_000])
    assert fetch(f"{server}/model.pth", SHA256, tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == ["bytes=700000-"]


@pytest.mark.parametrize("part", [CONTENT[:700_000], CONTENT, b"x" * 700_000,
                                  b"x" * (len(CONTENT) + 5)],
                         ids=["right", "whole", "wrong", "too-long"])
@pytest.mark.parametrize("understands_ranges", [True, False])
def test_any_part_leads_to_the_whole_file(server, tmp_path, part, understands_ranges):
    Handler.understands_ranges = understands_ranges
    part_of(tmp_path).write_bytes(part)
    assert fetch(f"{server}/model.pth", SHA256, tmp_path).read_bytes() == CONTENT
    assert not part_of(tmp_path).exists()


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=f"sha256 {SHA256}, expected {'0' * 64}"):
        fetch(f"{server}/model.pth", "0" * 64, tmp_path)
    assert files_in(tmp_path) == []


def test_missing_file_leaves_nothing(server, tmp_path):
    with pytest.raises(OSError, match="HTTP 404") as error:
        fetch(f"{server}/other.pth", SHA256, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert files_in(tmp_path) == []


def test_no_network_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="check the connection") as error:
        fetch("https://localhost:1/model.pth", SHA256, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert files_in(tmp_path) == []


def test_untrusted_server_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    with pytest.raises(OSError, match="certificate"):
        fetch(f"{server}/model.pth", SHA256, tmp_path)
    assert Handler.ranges == [] and files_in(tmp_path) == []


def test_only_https_and_only_with_a_checksum(server, tmp_path):
    with pytest.raises(ValueError, match="https only"):
        fetch(server.replace("https", "http") + "/model.pth", SHA256, tmp_path)
    with pytest.raises(ValueError, match="not https"):
        fetch(f"{server}/elsewhere", SHA256, tmp_path)
    for url in (f"{server}/model.pth", f"{server}/model.pth#sha256=12"):
        with pytest.raises(ValueError, match="no checksum"):
            find_model(url)


def test_registered_names(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = tmp_path / "models.yaml"
    registry.write_text(f"large: {{url: '{server}/model.pth', sha256: {SHA256}}}\n"
                        "default: {file: model.pth}\n")
    monkeypatch.setattr(download, "REGISTRY", registry)
    assert file_sha256(find_model("large")) == SHA256
    assert find_model("default") == download.SHIPPED_MODEL
    with pytest.raises(FileNotFoundError, match=r"'lage' not found.*'default', 'large'"):
        find_model("lage")


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "m.pth").write_bytes(b"x")
    assert find_model(tmp_path / "m.pth") == tmp_path / "m.pth"
    monkeypatch.setattr(download, "SHIPPED_MODEL", Path(tmp_path, "none.pth"))
    with pytest.raises(FileNotFoundError, match="--resume"):
        find_model()
