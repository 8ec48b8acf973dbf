"""`glasspoint dashboards`: writes the boards for Grafana and the rules for Prometheus into a folder.

The files come from the folder `dashboards/` of the project, which the build puts into the wheel. In a
checkout they are read from that folder.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from glasspoint.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["write_dashboards"]

_RULES = ("recording.yml", "alerts.yml")


def write_dashboards(output: Path, *, replace: bool) -> list[Path]:
    """Write all boards and rules into a folder, or none of them.

    Args:
        output: The folder. It is created if it is missing.
        replace: Whether to replace existing boards and rules that differ. Other files are left alone.

    Returns:
        The paths of all boards and rules.

    Raises:
        ConfigurationError: A file exists and differs, and `replace` is false; or the folder cannot be
            written. The message names the file.
    """
    found = {output.joinpath(*relative): content for relative, content in _contents().items()}
    try:
        others = [path for path, content in found.items() if path.exists() and path.read_bytes() != content]
        if others and not replace:
            raise ConfigurationError(
                f"Nothing was written: {', '.join(map(str, others))} would be replaced. Name another folder, "
                "or pass --force."
            )
        for path, content in found.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or output} cannot be written: {error.strerror}. Name a folder that this user "
            "may write."
        ) from error
    return list(found)


def _contents() -> dict[tuple[str, str], bytes]:
    source = _source()
    boards = sorted(
        (each for each in (source / "grafana").iterdir() if each.name.endswith(".json")),
        key=lambda each: each.name,
    )
    rules = [source / "prometheus" / name for name in _RULES]
    return {
        **{("grafana", each.name): each.read_bytes() for each in boards},
        **{("prometheus", each.name): each.read_bytes() for each in rules},
    }


def _source() -> Traversable:
    packaged = files("glasspoint") / "dashboards"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "dashboards"
