"""Models by path, name or URL, from a real HTTPS server on this machine."""

import hashlib
import http.server
import shutil
import ssl
import subprocess
import threading

import pytest

from checkpoint import load_checkpoint
from utils import download
from utils.download import MISC, fetch, find_model
from utils.files import file_sha256

CONTENT = bytes(range(256)) * 4000  # 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT under /model.pth, cut short under /cut.pth, and counts what is asked for."""

    asked = 0

    def do_GET(self):
        type(self).asked += 1
        if self.path not in ("/model.pth", "/cut.pth"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/model.pth" else CONTENT[:300_000])

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
    """Its address; its certificate is trusted during the test."""
    monkeypatch.setattr(Handler, "asked", 0)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "cert.pem"))
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


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_model_is_downloaded_once(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{server}/model.pth#sha256={SHA256.upper()}"
    path = find_model(url)
    assert path.read_bytes() == CONTENT and path.is_relative_to(tmp_path / "cache")
    assert "100%" in capsys.readouterr().err  # the progress bar
    assert find_model(url) == path
    assert Handler.asked == 1
    assert files_in(path.parent) == [path]


def test_damaged_cache_is_downloaded_again(server, tmp_path):
    path = fetch(f"{server}/model.pth", SHA256, tmp_path)
    path.write_bytes(b"damaged")
    assert fetch(f"{server}/model.pth", SHA256, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "sha256", "kind", "words"), [
    ("model.pth", "0" * 64, ValueError, f"does not have sha256 {'0' * 64}.*deleted"),
    ("cut.pth", SHA256, OSError, "cannot download"),
    ("other.pth", SHA256, OSError, "404")])
def test_what_is_not_the_whole_right_file_leaves_nothing(server, tmp_path, name, sha256, kind,
                                                         words):
    with pytest.raises(kind, match=words) as error:
        fetch(f"{server}/{name}", sha256, tmp_path)
    assert "\n" not in str(error.value) and files_in(tmp_path) == []


def test_no_network_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="check the address and the connection") as error:
        fetch("https://localhost:1/model.pth", SHA256, tmp_path)
    assert "\n" not in str(error.value) and files_in(tmp_path) == []


def test_untrusted_server_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(OSError, match="certificate"):
        fetch(f"{server}/model.pth", SHA256, tmp_path)
    assert Handler.asked == 0 and files_in(tmp_path) == []


def test_only_https_and_only_with_a_checksum(server, tmp_path):
    with pytest.raises(ValueError, match="https only"):
        fetch(server.replace("https", "http") + "/model.pth", SHA256, tmp_path)
    for url in (f"{server}/model.pth", f"{server}/model.pth#sha256=12"):
        with pytest.raises(ValueError, match="no checksum"):
            find_model(url)


def test_registered_names(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = tmp_path / "models.yaml"
    registry.write_text(f"large: {{url: '{server}/model.pth', sha256: {SHA256}}}\n"
                        "default: {file: model.pth, onnx: model.onnx}\n")
    monkeypatch.setattr(download, "REGISTRY", registry)
    assert file_sha256(find_model("large")) == SHA256
    for name in ("default", None):
        assert find_model(name) == MISC / "model.pth"
        assert find_model(name, prefer_onnx=True) == MISC / "model.onnx"
    with pytest.raises(FileNotFoundError, match=r"'lage' not found.*'default', 'large'"):
        find_model("lage")


@pytest.mark.parametrize("read", [find_model, load_checkpoint])
def test_a_folder_in_the_place_of_a_model_names_what_is_in_it(tmp_path, read):
    with pytest.raises(IsADirectoryError, match="is a folder; name a model's file; it holds no"):
        read(str(tmp_path))
    for name in ("last.pth", "best.pth", "epoch001_1.pth", "log.jsonl"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}' is a folder; name a file in it: "
                                                "best.pth, epoch001_1.pth, last.pth$"):
        read(tmp_path)


def test_a_name_of_a_model_may_be_that_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("default").is_file()


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "m.pth").write_bytes(b"x")
    assert find_model(tmp_path / "m.pth") == tmp_path / "m.pth"
    monkeypatch.setattr(download, "MISC", tmp_path)
    with pytest.raises(FileNotFoundError, match="--resume"):
        find_model()
