"""Names people may use in a job: what is built in, and what installed packages add by entry points."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from domain.errors import FieldProblem, Invalid

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """One name of a registry: where it comes from, and why it does not work, if so."""

    group: str
    name: str
    source: str
    error: str | None = None


class Registry(Generic[T]):
    """Names to factories: built-in ones and those of an entry-point group, loaded on first use.

    Args:
        group: Entry-point group, e.g. ``pruneloop.models``.
        kind: The word used in messages and error codes: ``model``, ``dataset``, ``exporter``.
        field: Dotted path of the job's field that holds the name.
        builtin: Built-in factories; an installed plug-in cannot take a built-in name.
        installed: Entry points to use instead of the environment's.
    """

    def __init__(
        self,
        group: str,
        kind: str,
        field: str,
        builtin: Mapping[str, Callable[..., T]],
        installed: Iterable[EntryPoint] | None = None,
    ) -> None:
        self.group = group
        self.kind = kind
        self.field = field
        self._builtin = dict(builtin)
        self._installed = installed
        self._plugins: dict[str, Plugin] | None = None
        self._factories: dict[str, Callable[..., T]] = dict(builtin)

    def plugins(self) -> tuple[Plugin, ...]:
        """Return every known name, broken plug-ins included, sorted by name."""
        if self._plugins is None:
            self._plugins = self._scan()
        return tuple(self._plugins[name] for name in sorted(self._plugins))

    def names(self) -> tuple[str, ...]:
        """Return the names that work, sorted."""
        return tuple(plugin.name for plugin in self.plugins() if plugin.error is None)

    def factory(self, name: str) -> Callable[..., T]:
        """Return the factory of a name.

        Raises:
            Invalid: ``unknown_<kind>`` with the known names, or ``broken_plugin`` with the reason.
        """
        found = self._find(name)
        if found is None and self._installed is None:
            importlib.invalidate_caches()  # it may have been installed since this process looked
            self._plugins = None
            found = self._find(name)
        family, _, member = name.partition("/")
        if found is None and member and self._find(family) is not None:
            return partial(self.factory(family), member)  # timm/resnet18: what the plug-in timm calls resnet18
        if found is None:
            known = ", ".join(self.names())
            message = (
                f"Unknown {self.kind} {name!r}; known: {known}. "
                "Choose one of them, or install its plug-in where the builders run."
            )
            raise Invalid(
                message,
                code=f"unknown_{self.kind}",
                fields=[FieldProblem(self.field, message)],
                metadata={"name": name, "known": list(self.names())},
            )
        if found.error is not None:
            message = f"The plug-in {name!r} of {found.source} does not import: {found.error}. Mend or reinstall it."
            raise Invalid(message, code="broken_plugin", fields=[FieldProblem(self.field, message)])
        return self._factories[name]

    def _find(self, name: str) -> Plugin | None:
        if name in self._builtin:  # of which no plug-in can be the meaning: none is imported for it
            return Plugin(self.group, name, "builtin")
        return next((plugin for plugin in self.plugins() if plugin.name == name), None)

    def _scan(self) -> dict[str, Plugin]:
        plugins = {name: Plugin(self.group, name, "builtin") for name in self._builtin}
        for entry in self._installed if self._installed is not None else entry_points(group=self.group):
            source = entry.dist.name if entry.dist is not None else entry.value
            if entry.name in self._builtin:
                taken = f"{entry.name}@{source}"
                plugins[taken] = Plugin(self.group, taken, source, "the name is taken by a built-in one")
                continue
            try:
                self._factories[entry.name] = entry.load()
            except Exception as error:  # A boundary: somebody else's import may raise anything and must break nothing.
                reason = f"{type(error).__name__}: {error}"
                plugins[entry.name] = Plugin(self.group, entry.name, source, reason)
            else:
                plugins[entry.name] = Plugin(self.group, entry.name, source)
        return plugins
