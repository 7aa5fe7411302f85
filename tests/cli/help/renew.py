"""Writes the help texts anew, after a change that was meant: python -m tests.cli.help.renew."""

from __future__ import annotations

from tests.cli.help.texts import FOLDER, help_texts


def main() -> None:
    for path in FOLDER.glob("*.txt"):
        path.unlink()
    for name, text in help_texts().items():
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"written {name}.txt")


if __name__ == "__main__":
    main()
