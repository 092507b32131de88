"""Google's storage as an emulator has it on this machine: fails when told to.

`pip install gcsfs gcp-storage-emulator` beside what the tests have; without them they are skipped.
"""

import io
import urllib.request
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

BUCKET = "faces"
MODULES = ("gcsfs", "gcp_storage_emulator")


class GoogleStore:
    """The emulator behind a door of ours.

    Attributes:
        url: of the server.
        failures: of each object's key, what the next answers to a GET of its content are: "error"
            (503) or "cut" (half of the bytes); "denied" (403) is the answer to every GET of it.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        # It would ask Google itself, by another protocol, which kind of bucket this is.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        for module in MODULES:
            pytest.importorskip(module, reason=f"Google's storage is tested with {module}")
        from gcp_storage_emulator import server

        self.failures: dict[str, list[str]] = {}
        patch.setattr(server, "RequestHandler", self._door(server.RequestHandler))
        self._server = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        self._server.start()
        self.url = "http://127.0.0.1:{1}".format(*self._server._api._httpd.server_address)

    def _door(self, handler):
        failures = self.failures

        class Door(handler):
            def do_GET(self):
                key = unquote(self.path).partition("?")[0].partition("/o/")[2]
                told = failures.get(key, [])
                if told == ["denied"]:
                    self.send_error(403)
                elif not told or "alt=media" not in self.path:
                    super().do_GET()
                elif told.pop(0) == "error":
                    self.send_error(503)
                else:
                    wire, self.wfile = self.wfile, io.BytesIO()
                    super().do_GET()
                    answer, self.wfile = self.wfile.getvalue(), wire
                    wire.write(answer[: len(answer) // 2])

        return Door

    def put(self, key: str, content: bytes | Path) -> str:
        """Store an object; its address."""
        body = content if isinstance(content, bytes) else content.read_bytes()
        place = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}"
        urllib.request.urlopen(urllib.request.Request(self.url + place, body)).close()
        return f"gs://{BUCKET}/{key}"

    def close(self):
        self._server.stop()


@pytest.fixture(scope="module")
def google_store():
    """The emulator, which Google's libraries find by the environment, without credentials."""
    with pytest.MonkeyPatch.context() as patch:
        store = GoogleStore(patch)
        import gcsfs
        from fsspec.config import conf

        patch.setenv("STORAGE_EMULATOR_HOST", store.url)
        patch.setitem(conf, "gs", {"token": "anon"})  # as FSSPEC_GS_TOKEN=anon at the start
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield store
        store.close()
