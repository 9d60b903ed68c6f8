"""Objects that remember the arguments they were made with: they can be saved."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


class Configured:
    """Mixin: ``config`` holds the arguments of ``__init__``, by name.

    Defaults are among them, those of base classes too: what a later version takes for
    a default does not change an object that was saved.

    Example:
        >>> class Circle(Configured):
        ...     def __init__(self, radius, *, colour="red"):
        ...         self.area = 3.14 * radius**2
        >>> Circle(2).config
        {'radius': 2, 'colour': 'red'}
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _remembering(cls.__init__)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make another one like this."""
        made_with = self.__dict__.get("_made_with", {})
        names = _arguments(type(self))
        return {name: value for name, value in made_with.items() if name in names}


def _remembering(init: Callable) -> Callable:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        made_with = self.__dict__.setdefault("_made_with", {})
        for name, value in list(bound.arguments.items())[1:]:
            several = signature.parameters[name].kind == inspect.Parameter.VAR_KEYWORD
            for key, each in value.items() if several else [(name, value)]:
                made_with.setdefault(key, each)  # the outermost class has the word
        init(self, *args, **kwargs)

    return remember


def _arguments(cls: type) -> set[str]:
    """Names that a class takes: its own, and where it passes others on, its base's."""
    names = set()
    for base in cls.__mro__:
        if base is Configured:
            break
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names |= {p.name for p in parameters}
            if all(p.kind != inspect.Parameter.VAR_KEYWORD for p in parameters):
                break
    return names
