"""The example scripts as modules, and an npm package of emojis with three drawn pictures."""

from __future__ import annotations

import importlib.util
import io
import json
import sys

import pytest

MODULES = ("digits", "train_digits_dit", "emojis", "emoji_classifier", "emoji_captions", "identity_autoencoder")
MODULES += ("resumable_training",)
RED, GREEN, BLUE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)


@pytest.fixture
def script(repository, monkeypatch):
    """Function from a path under examples/ to the loaded module."""
    monkeypatch.syspath_prepend(str(repository / "examples"))

    def load(relative: str):
        path = repository / "examples" / relative
        spec = importlib.util.spec_from_file_location(f"example_{path.stem}_{path.parent.name}".replace("-", "_"), path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # a dataclass looks its module up
        spec.loader.exec_module(module)
        return module

    yield load
    for name in MODULES:
        sys.modules.pop(name, None)


def picture(colour: tuple[int, int, int, int]) -> bytes:
    """A PNG of 64 x 64: the left half of that colour, the right half transparent."""
    from PIL import Image

    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste(colour, (0, 0, 32, 64))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def entry(image: str, category: str, subcategory: str, **more) -> dict:
    name = image.removesuffix(".png")
    names = {"name": f"{name.upper()}-SIGN", "short_name": name, "short_names": [name, f"{name}_2"]}
    placed = {"image": image, "category": category, "subcategory": subcategory, "has_img_google": True}
    return {**names, **placed, **more}


@pytest.fixture
def package(tmp_path):
    """A folder with three pictures: a flag, a hand with one skin tone, a heart that equals the flag."""
    tone = {"1F3FB": {"image": "tone.png", "has_img_google": True}}
    entries = [
        entry("flag.png", "Flags", "flag"),
        entry("hand.png", "People & Body", "hand-prop", skin_variations=tone),
        entry("heart.png", "Smileys & Emotion", "heart"),
        entry("no.png", "Objects", "tool", has_img_google=False),
        entry("bare.png", "Component", "skin-tone"),
    ]
    folder = tmp_path / "package" / "img" / "google" / "64"
    folder.mkdir(parents=True)
    for name, colour in {"flag": RED, "hand": GREEN, "tone": BLUE, "heart": RED}.items():
        (folder / f"{name}.png").write_bytes(picture(colour))
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(entries))
    return tmp_path / "package"
