"""YAML into frozen models, strictly: every error is one sentence with the key and the line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from puzzle.errors import PuzzleError

Keys = tuple[str | int, ...]  # ("distill", "tokens"); an int is a position in a list


class StrictModel(BaseModel):
    """A frozen value read from YAML; a key it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=StrictModel)


def load_yaml_model(path: Path, model: type[Model]) -> Model:
    """Read one YAML file as `model`; PuzzleError says what is wrong, and on which line."""
    return Document.read(path).validate(model)


@dataclass(frozen=True)
class Override:
    """One `a.b=c` from the command line; `text` is what the user wrote."""

    keys: Keys
    text: str


@dataclass(frozen=True)
class Document:
    """Values read from YAML, with the marks that find the line of a key."""

    name: str
    data: dict[str, Any]
    root: yaml.Node | None = None
    overrides: tuple[Override, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file; PuzzleError when it is missing, not YAML, or not a mapping of keys."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PuzzleError(f"{path}: cannot be read ({error})") from None
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            data = loader.construct_document(root) if root else {}
        except yaml.MarkedYAMLError as error:
            line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise PuzzleError(f"{path}{line}: not YAML: {error.problem}") from None
        if not isinstance(data, dict):
            raise PuzzleError(f"{path} line 1: expected `key: value` lines, found {data!r}")
        _refuse_repeated_keys(str(path), root)
        return cls(str(path), data, root)

    def validate(self, model: type[Model]) -> Model:
        """The data as `model`; PuzzleError describes the first error in the file."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            first = min(error.errors(), key=lambda entry: self.line(entry["loc"]))
            raise PuzzleError(f"{self.where(first['loc'])}: {_sentence(first, model)}") from None

    def where(self, keys: Keys) -> str:
        """The file and line of a key, or the `--set` that gave it."""
        for override in self.overrides:
            if override.keys[: len(keys)] == keys or keys[: len(override.keys)] == override.keys:
                return f"--set {override.text}"
        return f"{self.name} line {self.line(keys)}"

    def line(self, keys: Keys) -> int:
        """The line of a key, or of the mapping that lacks it."""
        node, line = self.root, 1
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            marked, node = found
            line = marked.start_mark.line + 1
        return line


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"


def _child(node: yaml.Node | None, key: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that marks a key, and the node of its value."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if key_node.value == str(key):
                return key_node, value_node
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None


def _refuse_repeated_keys(name: str, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key_node, value_node in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise PuzzleError(f"{name} line {line}: key {key_node.value!r} appears twice")
            seen.add(key_node.value)
            _refuse_repeated_keys(name, value_node)


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
}


def _sentence(error: Any, model: type[StrictModel]) -> str:
    """One pydantic error as a sentence: unknown key, missing key, or value and expectation."""
    *parents, key = error["loc"] or ("",)
    inside = f" in {_dotted(parents)}" if parents else ""
    if error["type"] == "extra_forbidden":
        known = list(_model_at(model, parents).model_fields)
        return f"unknown key {key!r}{inside}; {did_you_mean(str(key), known)}"
    if error["type"] == "missing":
        return f"key {key!r} is missing{inside}"
    return f"{_dotted(error['loc'])} is {error['input']!r}, expected {_expected(error)}"


def _expected(error: Any) -> str:
    context, kind = error.get("ctx", {}), error["type"]
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "value_error":
        return str(context["error"]).removeprefix("expected ")
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "greater_than":
        return f"more than {context['gt']:g}"
    if kind == "greater_than_equal":
        return f"at least {context['ge']:g}"
    if kind == "less_than_equal":
        return f"at most {context['le']:g}"
    message: str = error["msg"]
    return _EXPECTED.get(kind.split("_")[0], message[:1].lower() + message[1:])


def _dotted(keys: Sequence[str | int]) -> str:
    """`space.ffn[2]` for ("space", "ffn", 2)."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def _inside(kind: Any) -> Any:
    """What a list, or a mapping, is of: `Phase` for tuple[Phase, ...] and for dict[str, Phase]."""
    *_, last = (each for each in get_args(kind) if each is not ...)
    return last


def _model_at(model: type[StrictModel], keys: Sequence[str | int]) -> type[BaseModel]:
    """The model that holds the mapping at `keys`."""
    kind: Any = model
    for key in keys:
        fields = getattr(kind, "model_fields", None)
        kind = fields[str(key)].annotation if fields else _inside(kind)
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    return kind
