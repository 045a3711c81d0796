"""Serves one large file on loopback as the Hub and its CDN do, over plain HTTP or TLS, freely or at a rate.

The Hub is `tests/fake_hub.py`, in a process of its own. The bytes come from nginx where it is installed (`apt-get install
nginx-light`); otherwise from the standard library's server, which is slower than what it is to measure, and says so.

    with origin.serving(folder, path, tls=True, rate=50e6) as place: ...
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
REPO, FILE, ETAG = "benchmark/head", "model.safetensors", "be" * 32

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 2; {user}
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; default_type binary/octet-stream; {rate}
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen {host}:{port}{tls}; root {folder}/root; }}
}}
"""


@dataclass(frozen=True)
class Place:
    """Where the file is served."""

    endpoint: str
    """Of the Hub: HF_ENDPOINT."""
    certificate: Path
    """What SSL_CERT_FILE must name for TLS to be trusted."""
    server: str
    """What sends the bytes."""


def server() -> str:
    """What sends the bytes on this machine."""
    if shutil.which("nginx") is None:
        return "standard library"
    told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"nginx/[\d.]+", told)
    return found[0] if found else "nginx"


@contextlib.contextmanager
def serving(folder: Path, path: Path, *, tls: bool, rate: float | None) -> Iterator[Place]:
    """The file at `path`, as FILE of REPO; `folder` is for what the servers keep meanwhile."""
    certificate, key = make_certificate(folder)
    command = [sys.executable, "-m", "benchmarks.origin", str(path)]
    with contextlib.ExitStack() as stack:
        if server() == "standard library":
            command += ["--rate", str(rate)] if rate else []
            command += ["--tls", str(certificate), str(key)] if tls else []
        else:
            command += [
                "--cdn",
                stack.enter_context(nginx(folder, path, tls=(certificate, key) if tls else None, rate=rate)),
            ]
        hub = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        stack.callback(hub.terminate)
        assert hub.stdout is not None
        yield Place(hub.stdout.readline().strip(), certificate, server())


@contextlib.contextmanager
def nginx(folder: Path, path: Path, *, tls: tuple[Path, Path] | None, rate: float | None) -> Iterator[str]:
    """The URL of an nginx that serves `path` under /xet-bridge/ETAG."""
    (folder / "root" / "xet-bridge").mkdir(parents=True, exist_ok=True)
    link = folder / "root" / "xet-bridge" / ETAG
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    config = NGINX.format(
        folder=folder,
        host=HOST,
        port=port,
        user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
        # nginx grants the rate of a second at once, and pauses for whole milliseconds after each buffer: large ones
        rate=f"limit_rate {rate:.0f}; output_buffers 2 2m;" if rate else "",
        tls=f" ssl; ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]}" if tls else "",
    )
    (folder / "nginx.conf").write_text(config)
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", "nginx.conf"], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(HOST, port)
            yield f"http{'s' if tls else ''}://{HOST}:{port}"
        finally:
            process.terminate()


def wait_for(host: str, port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.02)
    raise SystemExit(f"error: nothing listens at {host}:{port}: does nginx start at all?")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody has signed, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not certificate.exists():
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=loopback"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1,IP:127.0.0.2"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def main() -> None:
    from tests.fake_hub import FakeHub, File

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--cdn", help="URL of the server that sends the bytes [the standard library's]")
    parser.add_argument("--rate", type=float, help="bytes per second and connection")
    parser.add_argument("--tls", nargs=2, type=Path, metavar=("CERTIFICATE", "KEY"))
    options = parser.parse_args()
    hub = FakeHub(rate=options.rate)
    hub.add(REPO, {FILE: File(options.path, lfs=True, etag=ETAG)})
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.tls)
        cdn = hub.servers[1]
        cdn.socket = context.wrap_socket(cdn.socket, server_side=True, do_handshake_on_connect=False)
        hub.cdn_url = hub.cdn_url.replace("http:", "https:")
    hub.cdn_url = options.cdn or hub.cdn_url
    print(hub.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
