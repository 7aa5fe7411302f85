"""Pictures as values: rectangles, lines and words at their places, which a template draws as SVG."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rect:
    """One rectangle.

    Attributes:
        x: left end in pixels, as all lengths.
        y: upper end.
        width: of it.
        height: of it.
        fill: a CSS colour, or the name of one of the page's own, as `ok`.
        radius: of its corners.
        opacity: 1 for none.
        title: what is said where one points at it; may be empty.
    """

    x: float
    y: float
    width: float
    height: float
    fill: str
    radius: float = 0
    opacity: float = 1
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Word:
    """A piece of text; `anchor` is start, middle or end, `colour` one of the page's own."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    colour: str = "ink"
    bold: bool = False
    small: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A level line from x1 to x2."""

    x1: float
    x2: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture.

    Attributes:
        width: in pixels.
        height: likewise.
        label: what it shows, for readers that see none.
        rects: drawn in this order, over the lines.
        words: drawn last.
        lines: drawn first.
        stretched: whether it takes the whole width of its section.
    """

    width: float
    height: float
    label: str
    rects: tuple[Rect, ...] = ()
    words: tuple[Word, ...] = ()
    lines: tuple[Line, ...] = ()
    stretched: bool = False


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a colour stands for, with a share where it is one of a whole."""

    fill: str
    text: str
    share: str = ""
    opacity: float = 1


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture with what its colours mean."""

    picture: Picture
    keys: tuple[Key, ...] = ()


def share_bar(shares: list[tuple[str, int, str, float]], total: int) -> Drawn:
    """One bar, cut into pieces by size.

    Args:
        shares: name, size, colour and opacity of each piece; those of size 0 are left out.
        total: size of the whole bar.
    """
    x, rects, keys = 0.0, [], []
    for name, size, fill, opacity in shares:
        if size <= 0:
            continue
        width, share = 1000 * size / total, f"{size / total:.2%}"
        rects.append(
            Rect(x=x, y=0, width=max(width - 2, 0.5), height=34, fill=fill, radius=4, opacity=opacity,
                 title=f"{name}: {share}")
        )  # fmt: skip
        keys.append(Key(fill=fill, text=name, share=share, opacity=opacity))
        x += width
    picture = Picture(width=1000, height=34, label="shares of a whole", rects=tuple(rects), stretched=True)
    return Drawn(picture=picture, keys=tuple(keys))
