"""Options that several commands have: each with one name, one unit and one help.

What must be named comes in place, the result last; what has a default is an option. Numbers of
things are read as people write them: 360k, 2M, 2e6, 200_000.
"""

import argparse
import re

LARGEST = 2**53  # whole numbers up to it are exact as floats
COUNT = re.compile(r"(\d[\d_]*\.?\d*|\.\d+)(e\+?\d{1,3})?([kmg]?)", re.IGNORECASE)
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def count(text: str) -> int:
    """A whole number from 0 on; argparse's error says what is wrong with another one."""
    found = COUNT.fullmatch(text.strip())
    if found:
        number = float(found[1].replace("_", "") + (found[2] or "")) * FACTORS[found[3].lower()]
        # 1.1M is not 1100000 in binary, but nobody means anything else by it.
        if number <= LARGEST and abs(number - round(number)) <= 1e-9 * number:
            return round(number)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number such as 2000000, 2e6 or 2M")


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = count(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be 1 or more")
    return number


def device(text: str) -> str:
    """The name of a device that torch knows: cpu, cuda or cuda:1."""
    if re.fullmatch(r"cpu|cuda(:\d+)?", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no device: cpu, cuda, or one of several, cuda:1")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Where the results go for other programs."""
    parser.add_argument(
        "--json", metavar="PATH|-", help="write the results as JSON, - for standard output"
    )


def add_batch_size(
    parser: argparse.ArgumentParser, default: int = 64, *, older: str | None = None
) -> None:
    """How many images go through at once; `older` is a spelling that goes on working."""
    _add(parser, "--batch-size", older, default, "IMAGES", "that go through at once")


def add_embedding_size(
    parser: argparse.ArgumentParser, default: int = 512, *, older: str | None = None
) -> None:
    """Numbers of an embedding."""
    _add(parser, "--embedding-size", older, default, "NUMBERS", "of an embedding")


def add_image_size(parser: argparse.ArgumentParser, text: str = "height and width") -> None:
    """Height and width of the images."""
    _add(parser, "--image-size", None, 112, "PIXELS", text)


def add_threads(
    parser: argparse.ArgumentParser, text: str = "that work side by side, 0 for one on each core"
) -> None:
    """Threads of this process; 0, the default, for as many as text says."""
    text = f"{text} (default: 0)"
    parser.add_argument("--threads", type=count, default=0, metavar="THREADS", help=text)


def add_device(parser: argparse.ArgumentParser, default: str | None = "cpu") -> None:
    """What computes, for `parallel.ranks.own_device`.

    Without a default it is a GPU for each process where there is one.
    """
    otherwise = "%(default)s" if default else "a GPU for each process, cpu where there is none"
    text = f"cpu, cuda, or one of several GPUs, cuda:1 (default: {otherwise})"
    parser.add_argument("--device", type=device, default=default, metavar="DEVICE", help=text)


def add_bootstrap(parser: argparse.ArgumentParser, default: int, whose: str) -> None:
    """How many replicates the intervals are drawn from; whose they are is for the help."""
    text = f"of {whose} intervals; 0 for none (default: %(default)s)"
    parser.add_argument("--bootstrap", type=int, default=default, metavar="REPLICATES", help=text)


def add_identities(
    parser: argparse.ArgumentParser, default: int | None, text: str, *, older: str | None = None
) -> None:
    """How many people; a class of a head is one, too."""
    _add(parser, "--identities", older, default, "IDENTITIES", text)


def add_unseen_identities(
    parser: argparse.ArgumentParser, default: int | None, text: str, older: str | None = None
) -> None:
    """How many people who are not in the training set."""
    _add(parser, "--unseen-identities", older, default, "IDENTITIES", text)


def _add(
    parser: argparse.ArgumentParser,
    name: str,
    older: str | None,
    default: int | None,
    metavar: str,
    text: str,
) -> None:
    # The older spelling, which nobody need learn, names the value in reports that are there.
    dest = (older or name).lstrip("-").replace("-", "_")
    text = text if default is None else f"{text} (default: %(default)s)"
    parser.add_argument(name, type=count, dest=dest, default=default, metavar=metavar, help=text)
    if older is not None:
        hidden = argparse.SUPPRESS
        parser.add_argument(older, type=count, dest=dest, default=hidden, help=hidden)
