"""Who may use the page of `refine serve`: host names and passwords."""

import socket

import pytest

from refine.cli.main import main
from refine.errors import RefineError
from refine.serve.access import is_local_name, is_loopback
from refine.serve.models import Models


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1:7860", True),
        ("localhost", True),
        ("[::1]:80", True),
        ("192.168.1.5:7860", True),
        (socket.gethostname(), True),
        ("evil.example:7860", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_local_host_names(host, local):
    assert is_local_name(host) is local


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.1.5")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_a_public_page_without_a_password_warns(monkeypatch, capsys):
    page = pytest.importorskip("refine.serve.page")
    monkeypatch.setattr(page, "launch", lambda *_: (_ for _ in ()).throw(RefineError("stop")))
    for host, auth, warned in (("0.0.0.0", None, True), ("0.0.0.0", ("a", "b"), False), ("127.0.0.1", None, False)):
        with pytest.raises(RefineError, match="stop"):
            page.serve(Models(device="cpu"), host, 1, auth)
        assert ("warning" in capsys.readouterr().err) is warned


def test_invalid_passwords_are_reported(capsys):
    for odd in ("name", "name:", ":word"):
        assert main(["serve", "--auth", odd]) == 1
        assert "--auth: expected USER:PASSWORD" in capsys.readouterr().err
