"""Functions of a module as another text would have them, changed in place: whoever has imported
them has them too.
"""

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType

from tests.commands import ROOT


@contextmanager
def planted(path: str, before: str, after: str) -> Iterator[None]:
    """Inside, a file of the package is as if `before`, which it has once, were `after`.

    Args:
        after: with as many lines.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path} has {text.count(before)} times {before!r}"
    code = compile(text.replace(before, after), f"{ROOT / path} (planted)", "exec")
    with changed(module_of(path), code) as names:
        assert names, f"{after!r} changes no function of {path}"
        yield


@contextmanager
def changed(module: ModuleType, code: CodeType) -> Iterator[list[str]]:
    """Inside, the module's functions are those of another code of it; yields which are others."""
    codes = {found.co_qualname: found for found in codes_in(code)}
    kept = {
        function: function.__code__
        for name, function in functions_in(module).items()
        if name in codes and codes[name] != function.__code__
    }
    for function in kept:
        function.__code__ = codes[function.__qualname__]
    try:
        yield [function.__qualname__ for function in kept]
    finally:
        for function, own in kept.items():
            function.__code__ = own


def module_of(path: str) -> ModuleType:
    return importlib.import_module(path.removesuffix(".py").replace("/", "."))


def codes_in(code: CodeType) -> Iterator[CodeType]:
    for found in code.co_consts:
        if isinstance(found, CodeType):
            yield found
            yield from codes_in(found)


def functions_in(module: ModuleType) -> dict[str, FunctionType]:
    """Functions and methods of a module, without what decorators have put around them, by name."""
    found = {}
    owners = [v for v in vars(module).values() if inspect.isclass(v)]
    owners = [owner for owner in owners if owner.__module__ == module.__name__]
    for owner in (module, *owners):
        for value in vars(owner).values():
            value = getattr(value, "fget", getattr(value, "__func__", value))
            value = inspect.unwrap(value) if callable(value) else value
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                found[value.__qualname__] = value
    return found
