"""A real S3 server (moto's) on this machine: counts what is asked for, fails when told to."""

import threading
from collections import Counter
from pathlib import Path

import pytest

BUCKET = "faces"
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStore:
    """moto's server behind a door of ours.

    Attributes:
        url: of the server, for S3's own and for plain HTTP clients.
        num_gets: how often each object's content was asked for, by "bucket/key".
        failures: of each object, what the next answers to a GET are: "error" (500) or "cut" (half
            of the bytes).
    """

    def __init__(self):
        for module in ("moto.server", "s3fs", "aiohttp"):
            pytest.importorskip(module, reason=f"object storage is tested with {module}")
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.num_gets: Counter[str] = Counter()
        self.failures: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ, start_response):
        path = environ["PATH_INFO"].strip("/")
        failure = None
        if environ["REQUEST_METHOD"] == "GET" and "/" in path:
            with self._lock:
                self.num_gets[path] += 1
                if self.failures.get(path):
                    failure = self.failures[path].pop(0)
        if failure in ("error", "denied"):
            status = "500 Internal Server Error" if failure == "error" else "403 Forbidden"
            start_response(status, [("Content-Length", "0")])
            return []
        answer = self._app(environ, start_response)
        if failure == "cut":
            body = b"".join(answer)
            return [body[: len(body) // 2]]
        return answer

    def close(self):
        self._server.shutdown()

    def put(self, key: str, content: bytes | Path) -> str:
        """Store an object; its address."""
        import boto3

        body = content if isinstance(content, bytes) else content.read_bytes()
        client = boto3.client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket=BUCKET, ACL="public-read")
        client.put_object(Bucket=BUCKET, Key=key, Body=body, ACL="public-read")
        return f"s3://{BUCKET}/{key}"

    def delete(self, key: str) -> None:
        import boto3

        boto3.client("s3", endpoint_url=self.url).delete_object(Bucket=BUCKET, Key=key)


def forget_servers():
    """fsspec keeps a file system with the server that it found first, another module's perhaps."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def object_store():
    """The server, which the libraries find as they find any other: by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        store = ObjectStore()
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        forget_servers()
        yield store
        store.close()
