"""The file of tokens, one of which every request must bring."""

from __future__ import annotations

from pathlib import Path

from dq_deploy.errors import FileProblemError

SHORTEST_TOKEN = 16
"""Characters of a token."""


def read_tokens(path: Path) -> tuple[str, ...]:
    """Tokens of a file, one a line; empty lines and those that begin with # are passed over.

    Raises:
        FileProblemError: it is missing, holds none, or one that is too short or not printable.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise FileProblemError(f"the tokens {path} cannot be read ({error})") from error
    tokens = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not tokens:
        raise FileProblemError(f"the file {path} holds no token, expected one a line")
    for number, token in enumerate(tokens, 1):
        if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise FileProblemError(
                f"token {number} of {path} is too short or no plain text, expected at least {SHORTEST_TOKEN} ASCII "
                "characters without spaces"
            )
    return tokens
