"""CUDA's streams, as far as their order matters: what is done on which, recorded without a GPU.

Stands in for torch's streams and its caching allocator, by the allocator's documented rules: memory
belongs to the stream that was current when it was taken; once freed it is handed out on that stream
again, at once if no other stream was recorded for it, otherwise when that stream has come past.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

DEFAULT = "default"


@dataclass(frozen=True)
class Event:
    """Something done to a memory ("take", "write", "read", "record"), or "synchronize" and "wait"
    of a stream, the other of which is in `memory`.
    """

    what: str
    stream: str
    memory: int | str | None = None


@dataclass
class Log:
    events: list[Event] = field(default_factory=list)
    current: threading.local = field(default_factory=threading.local)
    num_streams: int = 0

    def add(self, what, stream, memory=None):
        self.events.append(Event(what, stream, memory))

    def stream(self):
        return getattr(self.current, "name", DEFAULT)


def races(events: list[Event]) -> list[str]:
    """What may read or write a memory before another stream is done with it, in words."""
    found = []
    owner: dict[int, str] = {}
    recorded: dict[int, set[str]] = {}
    # For each memory the streams that still use it, as far as the host or a stream has not waited.
    pending_writer: dict[int, str] = {}
    for event in events:
        memory = event.memory
        if event.what == "take":
            owner[memory], recorded[memory] = event.stream, set()
        elif event.what == "record":
            recorded[memory].add(event.stream)
        elif event.what == "write":
            if owner[memory] != event.stream:
                found.append(f"{memory} of {owner[memory]} is written on {event.stream} unwaited")
            pending_writer[memory] = event.stream
        elif event.what == "synchronize":
            pending_writer = {m: s for m, s in pending_writer.items() if s != event.stream}
        elif event.what == "wait":  # the stream waits for the one named in memory: both in order
            owner = {m: event.stream if s == memory else s for m, s in owner.items()}
            pending_writer = {m: s for m, s in pending_writer.items() if s != memory}
        elif event.what == "read":
            if pending_writer.get(memory, event.stream) != event.stream:
                found.append(f"{memory} is read on {event.stream} before it is written")
            if event.stream not in recorded[memory] | {owner[memory]}:
                found.append(f"{memory} is reused on {owner[memory]} while {event.stream} reads it")
    return found


def record_streams(monkeypatch) -> Log:
    """Tensors asked for on "cuda" lie on the CPU from now on; what streams do is in the log."""
    log = Log()
    empty = torch.empty

    class Stream:
        cuda_stream = 0

        def __init__(self, device=None):
            log.num_streams += 1
            self.name = f"side {log.num_streams}"

        def synchronize(self):
            log.add("synchronize", self.name)

        def wait_stream(self, other):
            log.add("wait", self.name, other.name)

    class Current(Stream):
        def __init__(self, device=None):
            self.name = log.stream()

    @contextmanager
    def use(stream):
        before, log.current.name = log.stream(), stream.name
        try:
            yield
        finally:
            log.current.name = before

    def take(*shape, device=None, **options):
        tensor = empty(*shape, **options)
        if device is not None and torch.device(device).type == "cuda":
            log.add("take", log.stream(), tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch, "empty", take)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", Current)
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda tensor, stream: log.add("record", stream.name, tensor.data_ptr()),
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return log
