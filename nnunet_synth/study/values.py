"""Blocks of a YAML file whose keys are known, and checks of values that name the place in the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_synth.errors import UserError


class Block:
    """A mapping of the file whose keys are known; `where` is what messages call it. A default of `...` = required."""

    def __init__(self, content: Any, where: str, keys: Sequence[str]) -> None:
        if not isinstance(content, Mapping):
            raise UserError(f"{where} must be a mapping with the keys {', '.join(keys)}")
        for key in content:
            if key not in keys:
                raise UserError(f"{where}: unknown key {key!r}; {known_values(key, keys)}")
        self.content, self.where = dict(content), where

    def _get(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None and default is ...:
            raise UserError(f"{self.where} lacks {key!r}")
        return default if value is None else value

    def text(self, key: str, default: Any = ...) -> Any:
        value = self._get(key, default)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{key} of {self.where} must be text, got {value!r}")
        return value

    def whole(self, key: str, default: Any = ..., low: int = 0, high: int | None = None) -> Any:
        value = self._get(key, default)
        return None if value is None else a_whole(value, f"{key} of {self.where}", low, high)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{key} of {self.where} must be true or false, got {value!r}")
        return value

    def list(self, key: str, default: Any = ...) -> Sequence[Any]:
        value = self._get(key, default)
        if isinstance(value, str) or not isinstance(value, Sequence) or (default is ... and not value):
            raise UserError(f"{key} of {self.where} must be a list, e.g. [{value}]")
        if len({str(entry) for entry in value}) < len(value) and key not in ("patch_size", "spacing", "features"):
            raise UserError(f"{key} of {self.where} lists an entry twice")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise UserError(f"{key} of {self.where} must be a mapping of names to values, got {value!r}")
        return dict(value)

    def entries(self, key: str, default: Any = ...) -> dict[str, Any]:
        """A mapping of names to blocks, at least one unless there is a default."""
        self._get(key, default)
        found = {str(name): {} if entry is None else entry for name, entry in self.mapping(key).items()}
        if not found and default is ...:
            raise UserError(f"{key} of {self.where} is empty")
        return found

    def choice(self, key: str, known: Sequence[str], default: Any = ..., shown: Sequence[str] | None = None) -> Any:
        value = self._get(key, default)
        if value is not None and value not in known:
            raise UserError(f"{self.where}: unknown {key} {value!r}; {known_values(value, shown or known)}")
        return value

MAX_VALUES = 100_000        # in a study file, aliases written out


def known_values(value: Any, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(value), known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(known) or 'none'}"


def a_number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} must be a number, got {value!r}")
    return float(value)


def a_positive(value: Any, where: str) -> float:
    if a_number(value, where) <= 0:
        raise UserError(f"{where} must be above 0, got {value!r}")
    return float(value)


def a_whole(value: Any, where: str, low: int = 0, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        raise UserError(f"{where} must be a whole number from {low}{upper}, got {value!r}")
    return value


def read_yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which YAML would silently keep the last."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{key!r} stands twice in one block, line {node.start_mark.line + 1}: rename one")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        text = path.read_text(encoding="utf-8")
        _check_aliases(yaml.compose(text, Loader), {})
        return yaml.load(text, Loader)        # noqa: S506, a SafeLoader
    except UserError:
        raise
    except RecursionError as error:
        raise UserError("not valid YAML: it is nested beyond reason") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:       # ValueError: no UTF-8, a day that does not exist, …
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        raise UserError(f"not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error


def _check_aliases(node: Any, sizes: dict[int, int | None]) -> int:
    """The number of values that a YAML node stands for, aliases written out. Raises UserError where there are too many,
    or where it holds itself: a file of ten lines may stand for 10⁹ values."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = None
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        sizes[id(node)] = 1 + sum(_check_aliases(part, sizes) for part in parts)
    size = sizes[id(node)]
    if size is None or size > MAX_VALUES:
        raise UserError(f"line {node.start_mark.line + 1}: aliases (*name) make "
                        + ("a block that holds itself" if size is None else f"more than {MAX_VALUES} values"))
    return size
