"""Reads a YAML file key by key, keeping the line of everything, and collects all that is wrong.

A `Section` is one mapping of the file. Its methods take a key and return a value of the asked type,
or the default after noting a `Problem`; `close()` then notes the keys nobody asked for. So one pass
reports every problem, and a wrong value never causes a second message about itself (`sound`).

Only plain YAML: no tags, no merge keys (`<<`), one document. Knows nothing of cells.
"""

import difflib
import re
from collections.abc import Iterable
from typing import TypeVar

import yaml
from yaml.constructor import SafeConstructor

from control_plane.errors import Problem, TopologyInvalid

FILE_BYTES_MAX = 1 << 20

Scalar = str | int | float | bool
_ScalarT = TypeVar("_ScalarT", str, int, float, bool)

_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_BOOL = "tag:yaml.org,2002:bool"
_NULL = "tag:yaml.org,2002:null"
_STR = "tag:yaml.org,2002:str"
_WORDS = {_INT: "a whole number", _FLOAT: "a number", _BOOL: "true or false", _STR: "text"}


def read_root(text: str, file: str) -> "Section":
    """The file's outermost mapping. Raises TopologyInvalid if the text is not one YAML mapping."""
    if len(text.encode()) > FILE_BYTES_MAX:
        raise TopologyInvalid(
            file,
            [Problem(line=1, reason="the file is above 1 MiB", remedy="is it the right file?")],
        )
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        raise TopologyInvalid(file, [_syntax(line, exc.problem or "not YAML")]) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise TopologyInvalid(file, [_syntax(line, "a character that YAML forbids")]) from exc
    except RecursionError as exc:
        raise TopologyInvalid(file, [_syntax(1, "nested too deeply")]) from exc
    problems: list[Problem] = []
    if node is None:
        node = yaml.MappingNode("tag:yaml.org,2002:map", [], yaml.Mark(file, 0, 0, 0, None, 0))
    root = Section(node, "the file", problems)
    if not isinstance(node, yaml.MappingNode):
        raise TopologyInvalid(file, problems)
    return root


def _syntax(line: int, reason: str) -> Problem:
    return Problem(
        line=line, reason=f"not valid YAML: {reason}", remedy="fix the syntax or the indentation"
    )


class Section:
    """One mapping of the file, read key by key.

    problems: shared by all sections of the file, in the order of discovery.
    """

    def __init__(self, node: yaml.Node, where: str, problems: list[Problem]) -> None:
        self.line = node.start_mark.line + 1
        self.where = where
        self.problems = problems
        self._values: dict[str, yaml.Node] = {}
        self._key_lines: dict[str, int] = {}
        self._asked: list[str] = []
        self._unsound: set[str] = set()
        if isinstance(node, yaml.MappingNode):
            self._read_keys(node)
        elif not _is_null(node):
            self.note(
                self.line, f"{where} is {_kind(node)}, not a mapping", "write `key: value` lines"
            )

    def _read_keys(self, node: yaml.MappingNode) -> None:
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR:
                shown = (
                    f"{key_node.value!r}" if isinstance(key_node, yaml.ScalarNode) else "this key"
                )
                self.note(line, f"{shown} in {self.where} is not a name", "quote it, or rename it")
                continue
            key = key_node.value
            if key in self._values:
                first = self._key_lines[key]
                self.note(
                    line,
                    f"{self.where} has {key!r} twice (first on line {first})",
                    "keep one of the two",
                )
                continue
            self._values[key] = value
            self._key_lines[key] = line

    def note(self, line: int, reason: str, remedy: str) -> None:
        self.problems.append(Problem(line=line, reason=reason, remedy=remedy))

    def note_key(self, key: str, reason: str, remedy: str) -> None:
        """Notes that the value of `key` is wrong; `sound` then says so to later checks."""
        self._unsound.add(key)
        self.note(self.line_of(key), reason, remedy)

    def line_of(self, key: str) -> int:
        return self._key_lines.get(key, self.line)

    def sound(self, *keys: str) -> bool:
        """Whether nothing was noted about these keys, so that checks across them make sense."""
        return not self._unsound.intersection(keys)

    @property
    def names(self) -> list[str]:
        """The keys that are there, in the order of the file."""
        return list(self._values)

    def section(self, key: str, where: str | None = None) -> "Section":
        """The mapping under `key`; an empty one if the key is absent or empty."""
        node = self._take(key)
        if node is None:
            mark = yaml.Mark("", 0, self.line - 1, 0, None, 0)
            node = yaml.MappingNode("tag:yaml.org,2002:map", [], mark)
        return Section(node, where or f"{self.where}.{key}", self.problems)

    def sections(self, key: str) -> list["Section"]:
        """The list of mappings under `key`; empty if absent."""
        node = self._take(key)
        if node is None or _is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.note_key(
                key, f"{self.where}.{key} is {_kind(node)}, not a list", "start items with `- `"
            )
            return []
        where = f"{self.where}.{key}"
        return [
            Section(item, f"{where}[{index}]", self.problems)
            for index, item in enumerate(node.value)
        ]

    def integer(self, key: str, default: int, minimum: int, maximum: int, unit: str) -> int:
        value = self._bounded(key, minimum, maximum, unit, f"the default is {default}")
        return default if value is None else value

    def optional_integer(self, key: str, minimum: int, maximum: int) -> int | None:
        node = self._values.get(key)
        if node is not None and _is_null(node):
            self._asked.append(key)
            return None
        return self._bounded(key, minimum, maximum, "", "leave it out for the default")

    def _bounded(self, key: str, minimum: int, maximum: int, unit: str, remedy: str) -> int | None:
        value = self._scalar(key, (_INT,))
        if not isinstance(value, int):
            return None
        if not minimum <= value <= maximum:
            where = f"{self.where}.{key} is {value}"
            self.note_key(key, f"{where}, outside {minimum} to {maximum} {unit}".strip(), remedy)
            return None
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._scalar(key, (_BOOL,))
        return value if isinstance(value, bool) else default

    def text(self, key: str, default: str) -> str:
        value = self._scalar(key, (_STR,))
        return value if isinstance(value, str) else default

    def optional_text(self, key: str) -> str | None:
        node = self._values.get(key)
        if node is not None and _is_null(node):
            self._asked.append(key)
            return None
        return self.text(key, "") or None

    def texts(self, key: str) -> tuple[str, ...]:
        """One text or a list of texts; empty if the key is absent."""
        node = self._values.get(key)
        if not isinstance(node, yaml.SequenceNode):
            return (self.text(key, ""),) if node is not None else ()
        self._asked.append(key)
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode) or item.tag != _STR:
                self._unsound.add(key)
                where = f"an item of {self.where}.{key}"
                line = item.start_mark.line + 1
                self.note(line, f"{where} is {_kind(item)}, and must be text", "quote it")
        return tuple(item.value for item in node.value) if self.sound(key) else ()

    def holds_mapping(self, key: str) -> bool:
        return isinstance(self._values.get(key), yaml.MappingNode)

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        value = self.text(key, default)
        known = list(choices)
        if value not in known and self.sound(key):
            self.note_key(key, f"{self.where}.{key} is {value!r}", f"{suggestion(value, known)}")
            return default
        return value

    def number(self, key: str) -> int | float | None:
        value = self._scalar(key, (_INT, _FLOAT))
        return value if isinstance(value, int | float) else None

    def scalar(self, key: str) -> Scalar | None:
        """A value of any plain type, for settings whose type another program knows."""
        return self._scalar(key, (_INT, _FLOAT, _BOOL, _STR))

    def close(self) -> None:
        """Notes every key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                self.note_key(
                    key, f"{self.where} has no key {key!r}", suggestion(key, sorted(self._asked))
                )

    def _take(self, key: str) -> yaml.Node | None:
        self._asked.append(key)
        return self._values.get(key)

    def _scalar(self, key: str, tags: tuple[str, ...]) -> Scalar | None:
        node = self._take(key)
        if node is None:
            return None
        wanted = " or ".join(_WORDS[tag] for tag in tags)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in tags:
            remedy = (
                "quote the value"
                if _STR in tags and isinstance(node, yaml.ScalarNode)
                else f"write {wanted}"
            )
            self.note_key(key, f"{self.where}.{key} is {_kind(node)}, and must be {wanted}", remedy)
            return None
        value = _plain_value(node)
        if value is None:
            self.note_key(
                key,
                f"{self.where}.{key} is {node.value!r}, and must be {wanted}",
                f"write {wanted}",
            )
        return value


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """What to write instead: the closest known word, else all of them."""
    words = list(known)
    close = difflib.get_close_matches(wrong, words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(words)}"


def _plain_value(node: yaml.ScalarNode) -> Scalar | None:
    constructor = SafeConstructor()
    try:
        if node.tag == _INT:
            # YAML 1.1 reads 010 as octal and 1:30 as 90: nobody means that in this file.
            return int(node.value) if re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", node.value) else None
        if node.tag == _FLOAT:
            value = constructor.construct_yaml_float(node)
            return value if value == value and abs(value) != float("inf") else None
        if node.tag == _BOOL:
            return bool(constructor.construct_yaml_bool(node))
    except ValueError:
        return None
    return str(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if _is_null(node):
        return "empty"
    word = _WORDS.get(node.tag)
    return f"{node.value!r} ({word})" if word else f"{node.value!r}"
