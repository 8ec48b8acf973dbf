"""What `make site` needs besides mkdocs.yml: links out of docs/, and docstrings.

MkDocs knows only the files in docs/. The README and the changelog become pages, too. A link to a source file
works where the repository is shown, and would be broken on the site: it becomes the path of the file. A link
to a file that is not there is a warning, and so an error in `make site`.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from griffe import Attribute, Class, ExprName, Extension, Function, GriffeError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from griffe import Module, Object
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["Docstrings", "on_files", "on_page_markdown", "on_post_build"]

_log = logging.getLogger("mkdocs.hooks")

_DOCTESTS = re.compile(r"^(\s*)Example:(\n\s*>>>)", re.MULTILINE)

_ROOT = Path(__file__).resolve().parents[1]

# Files beside docs/ that are pages of the site, too.
_PAGES = {"README.md": "start.md", "CHANGELOG.md": "changes.md"}

# A code block or a code span, which stays as it is; or a link or a picture.
_PARTS = re.compile(r"(^```.*?^```|`[^`\n]+`(?!\]))|\[([^\]\n]*)\]\(([^)\s]+)\)", re.DOTALL | re.MULTILINE)


# What is a good text of a link in a repository, and a bad one on a site.
_NAME_OF_A_PAGE = re.compile(r"(docs/)?[\w-]+\.md")


_LOADED_FROM_ELSEWHERE = re.compile(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)")


def on_files(files: Files, *, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages that are made of files beside docs/."""
    for name, page in _PAGES.items():
        text = (_ROOT / name).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages, or into text that names a file."""
    beside = {made: _ROOT / name for name, made in _PAGES.items()}
    source = beside.get(page.file.src_uri) or _ROOT / "docs" / page.file.src_uri

    def replaced(found: re.Match[str]) -> str:
        kept, text, link = found.groups()
        if kept is not None or "://" in link or link.startswith("#"):
            return found[0]
        name, _, anchor = link.partition("#")
        target = (source.parent / name).resolve()
        path = target.relative_to(_ROOT).as_posix()
        if path in _PAGES:
            on_the_site = _ROOT / "docs" / _PAGES[path]
        elif target.is_relative_to(_ROOT / "docs"):
            on_the_site = target
        else:
            if not target.exists():
                _log.warning("%s links to %s, which is not there", page.file.src_uri, path)
            return f"`{path}`" if text.strip("`") in (path, target.name) else f"{text} (`{path}`)"
        relative = posixpath.relpath(on_the_site, (_ROOT / "docs" / page.file.src_uri).parent)
        shown = _title(target) if _NAME_OF_A_PAGE.fullmatch(text) and target.exists() else text
        return f"[{shown}]({relative}{'#' if anchor else ''}{anchor})"

    return _PARTS.sub(replaced, markdown)


def on_post_build(*, config: MkDocsConfig, **_: Any) -> None:
    """Warn if a page loads anything from another server: the site works without a network."""
    for page in Path(config.site_dir).rglob("*.html"):
        for loaded in _LOADED_FROM_ELSEWHERE.findall(page.read_text("utf-8")):
            _log.warning("%s loads %s", page.name, loaded)


def _title(page: Path) -> str:
    """The first heading of a page."""
    return page.read_text("utf-8").partition("# ")[2].partition("\n")[0]


class Docstrings(Extension):
    """Changes what Griffe would show otherwise than it is meant.

    - Doctests under "Example:" are code. (Griffe makes them so under "Examples:".)
    - A default is a value. (Griffe shows the name of the constant.)
    """

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Change all objects of a package, when all of it is known."""
        for module in pkg.modules.values():
            self.on_package(pkg=module)
        for each in _members(pkg):
            if each.docstring is not None:
                each.docstring.value = _as_griffe_reads_it(each.docstring.value)
            for parameter in each.parameters if isinstance(each, Function) else ():
                parameter.default = _value(each, parameter.default)


def _members(of: Object) -> Iterator[Object]:
    for each in of.members.values():
        if isinstance(each, Class | Function | Attribute):
            yield each
        if isinstance(each, Class):
            yield from _members(each)


def _as_griffe_reads_it(docstring: str) -> str:
    return _DOCTESTS.sub(r"\1Examples:\2", docstring)


def _value(function: Function, default: Any) -> Any:
    """A default, or the value of the constant that it names."""
    if not isinstance(default, ExprName):
        return default
    try:
        constant = function.modules_collection[default.canonical_path]
    except (KeyError, GriffeError):  # of another package
        return default
    return getattr(constant, "value", None) or default
