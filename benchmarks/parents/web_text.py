"""Fetch clean web text for scoring and evaluation: OpenWebText and Wikipedia passages.

    python benchmarks/parents/web_text.py FOLDER [TOKENIZER]

Source: the PyPI wheel `evals` 3.0.1.post1, which is downloaded and read, not installed. In its
`owt_5.jsonl` and `wikipedia_5.jsonl` a row holds a passage under "0" and shuffles of its sentences
under "1" to "10"; only "0" is text as written. Its `text_compression` samples add longer pages,
their `type` saying from where; those of C4 and OSCAR are left out, being spam in part. Writes
FOLDER/web.jsonl with rows {"text": ..., "source": "openwebtext" or "wikipedia", "kind": "passage"
(five sentences) or "page"}; with the folder of a tokenizer, counts its tokens. Nothing of the text
is committed, and nothing is trained on it.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from fetch import wheel

WHEEL = "evals==3.0.1.post1"
DATA = "evals/registry/data/"
SHUFFLED = {"openwebtext": "schelling_point/owt_5", "wikipedia": "schelling_point/wikipedia_5"}
PAGES = "text_compression/samples"
FEWEST_WORDS = 10  # a passage of fewer is a heading or a list of coordinates


def passages(opened: zipfile.ZipFile) -> list[dict[str, str]]:
    """Every passage once, in the order of the wheel, stubs left out."""
    found: dict[str, dict[str, str]] = {}
    for row in everything(opened):
        if len(row["text"].split()) >= FEWEST_WORDS:
            found.setdefault(row["text"], row)
    return list(found.values())


def everything(opened: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    """Text, source and kind of every passage and page of the sources wanted."""
    for source, member in SHUFFLED.items():
        for row in rows(opened, member):
            yield {"text": row["0"].strip(), "source": source, "kind": "passage"}
    for row in rows(opened, PAGES):
        if row["type"] in SHUFFLED:
            yield {"text": row["text"].strip(), "source": row["type"], "kind": "page"}


def rows(opened: zipfile.ZipFile, member: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON lines file in the wheel."""
    with opened.open(f"{DATA}{member}.jsonl") as lines:
        yield from map(json.loads, lines)


def count(found: list[dict[str, str]], folder: str) -> None:
    """Print texts, characters and tokens of each source and kind."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for source, kind in product(SHUFFLED, ("passage", "page")):
        texts = [row["text"] for row in found if (row["source"], row["kind"]) == (source, kind)]
        tokens = sum(map(len, tokenizer(texts)["input_ids"]))
        characters = sum(map(len, texts))
        print(f"{source}: {len(texts)} {kind}s, {characters} characters, {tokens} tokens")


def main() -> None:
    """Write the passages into the folder given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with wheel(WHEEL) as opened:
        found = passages(opened)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    (folder / "web.jsonl").write_text(lines, encoding="utf-8")
    print(f"wrote {len(found)} passages to {folder / 'web.jsonl'}")
    if len(sys.argv) > 2:
        count(found, sys.argv[2])


if __name__ == "__main__":
    main()
