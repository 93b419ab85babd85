"""Modules that are imported when somebody asks their package for them, so that importing the package stays quick."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def lazy_modules(package: str) -> Callable[[str], ModuleType]:
    """The `__getattr__` of a package whose modules are there without an import of their own: `memvit.models.zoo`."""

    def find(name: str) -> ModuleType:
        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    return find
