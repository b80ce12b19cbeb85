"""The files of `deploy/`: nginx in front of the service with TLS and a public Host."""

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from tests.servers import closed_port
from tests.serving.apps import encoded

pytestmark = pytest.mark.train

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
PUBLIC = "images.example.org"


@pytest.fixture
def proxied(serve_with: Any, tmp_path: Path) -> Iterator[int]:
    if NGINX is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed (Debian: apt-get install nginx openssl)")
    served = serve_with(allowed_hosts=(PUBLIC,))
    port = closed_port()
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={PUBLIC}", "-addext",
                   f"subjectAltName=DNS:{PUBLIC}", "-keyout", "privkey.pem", "-out", "fullchain.pem"]  # fmt: skip
    subprocess.run(certificate, cwd=tmp_path, check=True, capture_output=True)
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        ("server mlimages:8000", f"server 127.0.0.1:{served.port}"),
        ("listen 8443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/nginx/tls", str(tmp_path)),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; client_body_temp_path {tmp_path}/body;\n"
        f"proxy_temp_path {tmp_path}/proxy; fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u;\n"
        f"scgi_temp_path {tmp_path}/s;\n{text} }}\n"
    )
    process = subprocess.Popen([NGINX, "-c", tmp_path / "nginx.conf", "-p", tmp_path], stderr=subprocess.DEVNULL)
    while not is_open(port):
        assert process.poll() is None, (tmp_path / "error.log").read_text()
    yield port
    process.terminate()
    process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(port: int, folder: Path, host: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
    plain = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection = HTTPSConnection(PUBLIC, port, timeout=60)
    connection.sock = context.wrap_socket(plain, server_hostname=PUBLIC)
    connection.request(method, path, body, {"Host": host})
    reply = connection.getresponse()
    status, data = reply.status, reply.read()
    connection.close()
    return status, data


def test_a_public_host_is_answered_through_nginx_with_tls(proxied: int, tmp_path: Path) -> None:
    status, data = ask(proxied, tmp_path, PUBLIC, "POST", "/predict", encoded(3))
    assert status == 200
    assert json.loads(data)["predictions"][0]["class_name"].startswith("class")
    assert ask(proxied, tmp_path, f"{PUBLIC}:{proxied}", "GET", "/healthz")[0] == 200
    assert ask(proxied, tmp_path, "attacker.example", "GET", "/healthz")[0] == 421
    assert ask(proxied, tmp_path, PUBLIC, "POST", "/predict", bytes((16 << 20) + 1))[0] == 413
