"""Files in object storage: s3://, gs:// and https:// addresses, asked for and read through fsspec.

Credentials, endpoints and regions are those of the libraries: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
~/.aws/config, and fsspec's own FSSPEC_S3_ANON and the like.
"""

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard, TypeVar
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)
T = TypeVar("T")

ADDRESS = re.compile(r"(s3|gs|gcs|https?)://[^/]", re.IGNORECASE)
SECRETS = re.compile(r"(https?://)(?:[^/@\s]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?", re.IGNORECASE)
SIGNATURE = re.compile(
    r"(x-amz-[^=]*|x-goog-[^=]*|signature|expires|awsaccesskeyid|googleaccessid|policy|key-pair-id"
    r"|token|sig|se|sv|sp|sr|st)=",
    re.IGNORECASE,
)
MODULES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between tries
MAX_NAME = 200  # bytes of a name in the cache, with what is added to it
ABSENT = (404, 410)
PASSING = (408, 425, 429)  # of HTTP's 4xx codes those that may pass
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class RefusedError(RuntimeError):
    """The storage does not let us."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in object storage as it was found.

    Attributes:
        url: where it lies.
        num_bytes: its size; None where the server does not say.
        version: changes with its content: ETag, generation or time.
        beside: small files that belong to it: .idx, .names, property.
    """

    url: str
    num_bytes: int | None
    version: str
    beside: tuple["RemoteFile", ...] = ()

    @property
    def name(self) -> str:
        """The file's own name."""
        return path_of(self.url).name

    def __str__(self) -> str:
        """The address for messages: without what may be a password or a signature."""
        return masked(self.url)


@dataclass(frozen=True)
class CacheSettings:
    """Where the cache lies and how large it may be; what data.cache and data.cache_gigabytes say.

    Attributes:
        folder: None for $KAPPAFACE_CACHE or ~/.cache/kappaface_dist.
        gigabytes: of 10^9 bytes.
    """

    folder: str | None = None
    gigabytes: float = 100.0


def is_remote(train: object) -> bool:
    """Whether this is an address rather than a path."""
    return isinstance(train, str) and ADDRESS.match(train) is not None


def is_web(url: str) -> bool:
    """Whether it is an address of HTTP, which has a query, and no list of files."""
    return url.lower().startswith("http")


def masked(text: str) -> str:
    """An address, or a message with some, without users, passwords and signatures."""
    return SECRETS.sub(r"\1\2", text)


def look(url: str) -> RemoteFile | None:
    """The file as it is now; None where there is none."""
    store = filesystem(url)
    try:
        return remote_file(url, with_tries(f"looking for {masked(url)}", lambda: store.info(url)))
    except FileNotFoundError:
        return None


def remote_file(url: str, info: Mapping[str, Any]) -> RemoteFile:
    """The file that a library describes, each in words of its own."""
    known = ("ETag", "etag", "generation", "LastModified", "Last-Modified", "mtime")
    version = next((str(info[name]) for name in known if info.get(name)), "")
    return RemoteFile(url, info.get("size"), version.strip('"'))


def path_of(url: str) -> PurePosixPath:
    """The path in an address, for its name and its end."""
    # A key of S3 may hold any sign, "?" and "#" too.
    return PurePosixPath(urlsplit(url).path if is_web(url) else url.partition("://")[2])


def place_of(url: str) -> Path:
    """Where an address lies in a cache: its parts as folders."""
    protocol, _, rest = url.partition("://")
    query = ""
    if is_web(url):
        rest, _, query = rest.partition("?")
        rest = rest.rpartition("@")[2] if "@" in rest.partition("/")[0] else rest
    names = [_plain(name) for name in rest.split("/")]
    # Another query may be of another file; a signature is another one each time.
    asked = [part for part in query.split("&") if part and not SIGNATURE.match(part)]
    if asked:
        names.insert(-1, sha256("&".join(asked).encode()).hexdigest()[:16])
    return Path(protocol.lower(), *names)


def download(file: RemoteFile, path: Path) -> None:
    """Write the content of a file to path, and make sure that it is the one that was found.

    Raises:
        ValueError: it is gone, or another one by now.
        RuntimeError: it cannot be had, or the disk is full.
    """
    store = filesystem(file.url)

    def once() -> None:
        store.get_file(file.url, str(path))
        found = path.stat().st_size
        if file.num_bytes is not None and found != file.num_bytes:
            raise OSError(f"{found} of {file.num_bytes} bytes came")

    try:
        with_tries(f"reading {file}", once)
        now = look(file.url)
    except FileNotFoundError:
        now = None
    if now is None or now.version != file.version:
        raise ValueError(
            f"{file} was replaced or removed since this start: start again, which takes the new one"
        )


def _plain(name: str) -> str:
    """A part of an address as a name of a folder or file."""
    plain = re.sub(r"[\0/]", "_", name)
    if len(os.fsencode(plain)) > MAX_NAME or plain in ("", ".", ".."):
        end = Path(plain).suffix if len(Path(plain).suffix) < 10 else ""
        return sha256(name.encode("utf-8", "surrogateescape")).hexdigest() + end
    return plain


def filesystem(url: str) -> Any:
    """fsspec's file system for an address; RuntimeError where a library for it is not installed."""
    protocol = url.partition("://")[0].lower()
    try:
        import fsspec

        # Without its own list of what was there: a start must see what is there now.
        settings: dict[str, Any] = {"use_listings_cache": False}
        if is_web(url):
            import aiohttp

            # By default a file has five minutes to come, however long it is.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            settings["client_kwargs"] = {"timeout": timeout}
        return fsspec.filesystem(protocol, **settings)
    except ImportError as error:
        extra = "remote-gs" if protocol.startswith("g") else "remote"
        raise RuntimeError(
            f"{masked(url)} is read with fsspec and {MODULES[protocol]}: pip install"
            f" 'kappaface_dist[{extra}]'"
        ) from error


def with_tries(what: str, call: Callable[[], T]) -> T:
    """call(), and again after a while where it failed by what may pass; FileNotFoundError stays."""
    for attempt in range(len(WAITS) + 1):
        try:
            return call()
        except Exception as raised:  # every storage has errors of its own
            error = raised
            if isinstance(raised, FileNotFoundError):
                # fsspec says so of whatever stands between it and the web.
                cause = raised.__cause__
                if not _of_the_web(cause):
                    raise
                error = cause
            text = " ".join(masked(str(error)).split()) or type(error).__name__
            if getattr(error, "errno", None) in NO_SPACE:
                raise RuntimeError(
                    f"{what}: the disk of the cache is full: lower data.cache_gigabytes, or name"
                    " another folder in data.cache"
                ) from error
            if _is_final(error) or attempt == len(WAITS):
                kind = RefusedError if _is_final(error) else RuntimeError
                raise kind(
                    f"{what} failed after {attempt + 1} of {len(WAITS) + 1} tries ({text}): check"
                    " address, credentials and network"
                ) from error
            logger.warning("%s failed (%s): again in %g s", what, text, WAITS[attempt])
            time.sleep(WAITS[attempt])
    raise AssertionError("the last try returns or raises")


def _of_the_web(cause: BaseException | None) -> TypeGuard[Exception]:
    """Whether a file was not found because of something else than that it is not there."""
    is_web = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return is_web and getattr(cause, "status", 0) not in ABSENT


def _is_final(error: Exception) -> bool:
    """Whether another try would end the same way."""
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return True
    if str(error).startswith("Forbidden: "):  # gcsfs says it by nothing else
        return True
    # HTTP's code by aiohttp's name and by gcsfs's.
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in PASSING
