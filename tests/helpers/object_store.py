"""S3 server on the loopback address: moto, as real software in front of a store in memory."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from refine.storage import Url, list_folder, local_copy


@contextmanager
def s3_bucket() -> Iterator[Url]:
    """Start a server, and provide the URL of an empty bucket; the environment points to the server meanwhile.

    moto's store belongs to the process, not to a server: what the tests of another file left is removed first.
    """
    server, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", b"").close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield Url("s3://bucket")
        s3fs.S3FileSystem.clear_instance_cache()
    s3.stop()


def content(folder: Path | Url) -> dict[str, bytes]:
    """Return the content of all files below a path or URL but the stamps of the images, by relative path."""
    if isinstance(folder, Url):
        found = {}
        for url in list_folder(folder, recursive=True):
            with local_copy(url) as copy:
                found[str(url).removeprefix(f"{folder}/")] = copy.read_bytes()
    else:
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop("sources.jsonl", None)
    return found
