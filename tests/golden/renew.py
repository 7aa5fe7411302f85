"""Writes the golden files anew, after a change that was meant: python -m tests.golden.renew."""

from __future__ import annotations

from tests.golden.contents import FOLDER, contents


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    wanted = contents()
    for path in FOLDER.iterdir():
        if path.name not in wanted:
            path.unlink()
            print(f"removed {path.name}")
    for name, text in wanted.items():
        path = FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written {name}")


if __name__ == "__main__":
    main()
