"""Public models by name: fetched only when asked for, whole or not at all."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flowturbo_trt.models.catalogue import CACHE, CATALOGUE, PublicModel, resolve
from flowturbo_trt.models.checkpoints import CheckpointError

CONTENT = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, whole or cut short in two ways, and counts the requests."""

    served: list[str]

    def do_GET(self) -> None:
        self.served.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s" % (len(CONTENT), CONTENT[:1000]))
            return
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000] if self.path == "/short" else CONTENT)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A catalogue of models on a local server; lists the paths asked for."""
    paths: list[str] = []
    handler = type("Counting", (Handler,), {"served": paths})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    for name in ("whole", "short", "chunked", "missing"):
        monkeypatch.setitem(CATALOGUE, f"test/{name}", PublicModel({"model.pt": f"{base}/{name}"}, "MIT"))
    several = {"config.json": f"{base}/config", "weights.bin": f"{base}/weights"}
    half = several | {"weights.bin": f"{base}/short"}
    monkeypatch.setitem(CATALOGUE, "test/folder", PublicModel(several, "MIT"))
    monkeypatch.setitem(CATALOGUE, "test/half", PublicModel(half, "MIT"))
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    yield paths
    server.shutdown()
    server.server_close()


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_path(served: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"")
    assert resolve(str(tmp_path / "mine.pt"), True, quiet) == tmp_path / "mine.pt"
    assert served == []


def test_own_file_goes_before_a_name(
    served: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "whole").write_bytes(b"")
    assert resolve("test/whole", True, quiet) == Path("test/whole")
    assert served == []


def test_unknown_name(served: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"SiT-M: no such file, nor a public model \(SiT-XL/2-256, "):
        resolve("SiT-M", True, quiet)
    assert served == []


def test_not_fetched_unless_asked(served: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="test/whole: not fetched yet; add --download to get it"):
        resolve("test/whole", False, quiet)
    assert served == []
    assert not (tmp_path / "cache").exists()


def test_fetched_once(served: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    path = resolve("test/whole", True, lambda what, done, total: told.append(what))
    assert path == tmp_path / "cache" / "test-whole" / "model.pt"
    assert path.read_bytes() == CONTENT
    assert told[0] == "fetching model.pt"
    # Afterwards it is there, with or without permission to fetch.
    assert resolve("test/whole", True, quiet) == resolve("test/whole", False, quiet) == path
    assert served == ["/whole"]


def test_model_of_several_files(served: list[str], tmp_path: Path) -> None:
    folder = resolve("test/folder", True, quiet)
    assert folder == tmp_path / "cache" / "test-folder"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.bin"]
    assert served == ["/config", "/weights"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test/short", r"/short: ended after 1000 of 256000 bytes; try again"),
        ("test/chunked", r"/chunked: cannot be fetched \(IncompleteRead"),
        (
            "test/missing",
            r"/missing: cannot be fetched \(HTTP Error 404.*\); fetch it by hand and give its path",
        ),
    ],
)
def test_failed_fetch(served: list[str], tmp_path: Path, name: str, words: str) -> None:
    """Nothing partial is taken for whole: the next call fetches again."""
    for count in (1, 2):
        with pytest.raises(CheckpointError, match=words):
            resolve(name, True, quiet)
        assert len(served) == count
    assert not list((tmp_path / "cache").rglob("model.pt"))
    with pytest.raises(CheckpointError, match="not fetched yet"):
        resolve(name, False, quiet)


def test_failed_second_file(served: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ended after"):
        resolve("test/half", True, quiet)
    with pytest.raises(CheckpointError, match="not fetched yet"):
        resolve("test/half", False, quiet)
    # What came whole is not fetched again.
    with pytest.raises(CheckpointError, match="ended after"):
        resolve("test/half", True, quiet)
    assert served == ["/config", "/short", "/short"]


def test_no_server(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = PublicModel({"model.pt": "http://127.0.0.1:9/model.pt"}, "MIT")
    monkeypatch.setitem(CATALOGUE, "test/nowhere", model)
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9/model\.pt: cannot be fetched"):
        resolve("test/nowhere", True, quiet)


def test_through_the_command(
    served: list[str], fails: Callable[..., str], run: Callable[..., object], here: Path
) -> None:
    """Without --download the network is left alone, and with it what came is read as a checkpoint."""
    words = ["build", "--predictor", "test/whole", "--decoder", "none", "out"]
    assert "add --download" in fails(*words)
    assert served == []
    assert "model.pt" in fails(*words, "--download")
    assert served == ["/whole"]


@pytest.mark.parametrize("name", ["SiT-XL/2-256", "sd-vae-ft-ema"])
def test_public_models(name: str) -> None:
    model = CATALOGUE[name]
    assert model.licence
    assert all(address.startswith("https://") for address in model.files.values())
    assert model.is_folder == (name == "sd-vae-ft-ema")
