"""A Hub server that we did not write: the mirror `olah`, in an environment of its own, in front of the loopback Hub."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from llmsuper.store import ResultStore
from tests.checkpoints import opt_like, pythia_like
from tests.command import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmsuper.types import HeadRecord
    from tests.fake_hub import FakeHub

VERSION = "0.5.4"
SECONDS = 300
"""For the installation, which takes 20 on an idle machine."""
MODELS = {"org/safetensors": pythia_like(seed=1), "org/bin": opt_like(seed=2)}
BARE = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}


@pytest.fixture(scope="module")
def olah(pytestconfig: pytest.Config) -> Path:
    """The program, installed on the first run and kept in pytest's cache."""
    folder = Path(pytestconfig.cache.mkdir(f"olah-{VERSION}")) / f"{sys.version_info.major}.{sys.version_info.minor}"
    program = folder / ("Scripts" if os.name == "nt" else "bin") / "olah-cli"
    if not program.exists():
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [
                *(str(program.with_name("python")), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--retries", "1", "--timeout", "15", f"olah=={VERSION}"),
            ],
        ):
            try:
                done = subprocess.run(command, env=BARE, capture_output=True, text=True, timeout=SECONDS, check=False)
                reason = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
            except subprocess.TimeoutExpired:
                reason = f"not done in {SECONDS} s"
            if reason:
                shutil.rmtree(folder, ignore_errors=True)
                pytest.skip(f"olah {VERSION} cannot be installed: {reason}")
    return program


@contextmanager
def running(program: Path, folder: Path, port: int, *options: str) -> Iterator[str]:
    """The server, until the end; its endpoint."""
    said = folder / "said"
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--log-path", str(folder / "logs"), *options]
    with said.open("w") as out:
        server = subprocess.Popen(command, env=BARE, cwd=folder, stdout=out, stderr=out)
    try:
        while server.poll() is None and not listening(port):
            time.sleep(0.05)
        if server.poll() is not None:
            pytest.skip(f"olah {VERSION} does not start: {said.read_text().strip()[-300:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def overlap(endpoint: str, folder: Path, *models: str) -> subprocess.CompletedProcess[str]:
    """`llmsuper overlap` with this endpoint and nothing kept on this side."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        "HF_HUB_ETAG_TIMEOUT": "60",
    }
    command = [str(PROGRAM), "overlap", *models, "-q", "--results", str(folder / "results")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def found(folder: Path) -> tuple[dict[str, HeadRecord], set[bytes]]:
    """Records by model, and the bytes of the heads that were kept."""
    records = {record.repo: replace(record, made_by={}) for record in ResultStore(folder / "results").records()}
    kept = [path.read_bytes() for path in (folder / "home").rglob("heads/*/*.safetensors")]
    return records, {content[8 + int.from_bytes(content[:8], "little") :] for content in kept}


def test_heads_are_byte_exact_through_the_mirror(hub: FakeHub, olah: Path, tmp_path: Path) -> None:
    for model, checkpoint in MODELS.items():
        hub.add(model, checkpoint)
    assert overlap(hub.url, tmp_path / "straight", *MODELS).returncode == 0
    straight = found(tmp_path / "straight")
    assert straight[1] == {checkpoint.head.numpy().tobytes() for checkpoint in MODELS.values()}
    assert straight[0].keys() == MODELS.keys()
    port = free_port()
    ours = ["--hf-scheme", "http", "--hf-netloc", urlsplit(hub.url).netloc]
    theirs = ["--hf-lfs-netloc", urlsplit(hub.cdn_url).netloc, "--mirror-netloc", f"127.0.0.1:{port}"]
    with running(olah, tmp_path, port, *ours, *theirs, "--repos-path", str(tmp_path / "repos")) as endpoint:
        for run in ("cold", "kept by the mirror"):
            hub.take_log()
            done = overlap(endpoint, tmp_path / run, *MODELS)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            assert found(tmp_path / run) == straight
            asked = [request for request in hub.take_log() if request.origin == "cdn"]
            assert bool(asked) == (run == "cold")


def test_a_mirror_that_ignores_ranges_is_named(olah: Path, tmp_path: Path) -> None:
    """It serves its own git repositories whole, whatever range is asked for."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    checkpoint, port = pythia_like(rows=6400, tokens=6000), free_port()
    folder = checkpoint.write(tmp_path / "mirrors" / "models" / "org" / "own")
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "all"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *command], cwd=folder, env=BARE, check=True)
    (tmp_path / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{tmp_path / "repos"}"\n'
        f'mirrors-path = ["{tmp_path / "mirrors"}"]\n[accessibility]\noffline = true\n'
    )
    with running(olah, tmp_path, port, "--config", str(tmp_path / "olah.toml")) as endpoint:
        done = overlap(endpoint, tmp_path / "run", "org/own")
    assert done.returncode == 4, done.stderr
    assert "the server ignores byte ranges" in done.stderr
    assert found(tmp_path / "run") == ({}, set())
