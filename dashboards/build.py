"""Writes grafana/*.json: `make generate`. A test holds that they are what is written here."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.boards import cache_aside, conversation, overview, saturation

__all__ = ["FOLDER", "as_written", "main"]

FOLDER = Path(__file__).with_name("grafana")

_BOARDS = {
    "overview": overview.build,
    "cache_aside": cache_aside.build,
    "saturation": saturation.build,
    "conversation": conversation.build,
}


def as_written() -> dict[str, str]:
    """Return file name -> text, of every board."""
    encoder = JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False)
    return {f"{name}.json": encoder.encode(build()) + "\n" for name, build in _BOARDS.items()}


def main() -> None:
    """Write them all."""
    for name, text in as_written().items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
