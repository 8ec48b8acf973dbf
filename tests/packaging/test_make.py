"""What a contributor calls: the targets of make, the hooks, the workflow, the fast tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from fast import FAST
from longest import LONGEST
from places import ROOT

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))

# Where people read which target to call: not in the releases of CHANGELOG.md, which tell what was there.
NAMED_IN = ("*.md", "*.py", "*.toml", "*.txt", "*.yml", "*.yaml", "*.lua", "*.sql")
SKIPPED = {".git", ".venv", "site", "build", "dist", "CHANGELOG.md", Path(__file__).name}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="not installed: make")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Make, with no variable of the make that runs these tests."""
    inherited = {"ARGS", "WHAT", "MINUTES", "PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in inherited},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def would_run(*arguments: str) -> str:
    """The commands of a target, without those that install what it needs."""
    done = make("--dry-run", "--assume-old=.venv/.installed-dev", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(variable: str) -> list[str]:
    """The values of WHAT that a target takes, the default first."""
    [allowed] = re.findall(rf"^{variable} = \$\(call one_of,(.*)\)$", MAKEFILE, re.MULTILINE)
    return str(allowed).split()


def pages() -> Iterator[Path]:
    yield ROOT / ".ci" / "run"
    for directory, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name not in SKIPPED and not name.endswith("cache")]
        for name in files:
            path = Path(directory, name)
            if name not in SKIPPED and any(path.match(pattern) for pattern in NAMED_IN):
                yield path


CALL = re.compile(
    r"""(?:[`"]|^\$ |^ *(?:- )?run: )(?:[A-Z_]+=(?:"[^"]*"|\S+) )*make"""
    r"""(?:[ \n][A-Z_]+=\S+)*[ \n]([a-z-]+)(?:[^`"]{0,40}?\bWHAT=([a-z]+))?""",
    re.MULTILINE,
)
"""A call of make: in backticks or quotes, after a prompt, or a step of a workflow. Its target, and WHAT."""

CALL_IN_A_SCRIPT = re.compile(
    r"^(?:[A-Z_]+=(?:\"[^\"]*\"|\S+) )*make ([a-z-]+)(?: WHAT=([a-z]+))?$", re.MULTILINE
)


def mentions() -> Iterator[tuple[str, str, str]]:
    """File, target and WHAT of each call of make that a file names."""
    for path in pages():
        call = CALL if path.suffix else CALL_IN_A_SCRIPT
        for target, what in call.findall(path.read_text("utf-8")):
            yield path.relative_to(ROOT).as_posix(), target, what


def test_every_target_is_explained_in_80_columns() -> None:
    lines = re.findall(
        r"^\t@echo '(.*)'$", MAKEFILE.partition("help:\n")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert [line for line in lines if len(line) > 80] == []
    explained = {line.split()[1] for line in lines if line.startswith("make ")}
    assert explained == TARGETS - {"help"}
    phony = MAKEFILE.partition(".PHONY:")[2].partition("\n")[0].split()
    assert set(phony) == TARGETS


def test_contributing_explains_every_target_and_every_benchmark() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = set(re.findall(r"^\| `make (.+?)` \|", page, re.MULTILINE))
    benchmarks = {f"bench WHAT={what}" for what in words("BENCH")[1:]}
    others = {"chaos WHAT=chain", "generate WHAT=pictures"}
    assert rows == (TARGETS - {"help", "clean"}) | benchmarks | others


def test_no_file_names_a_target_that_is_not_there() -> None:
    allowed = {"bench": words("BENCH"), "chaos": words("CHAOS"), "generate": words("GENERATED")}
    found = list(mentions())
    assert {"README.md", "CONTRIBUTING.md", "docs/cost.md"} <= {name for name, _, _ in found}
    wrong = [
        (name, target, what)
        for name, target, what in found
        if target not in TARGETS or (what and what not in allowed.get(target, ()))
    ]
    assert wrong == []


@needs_make
def test_make_alone_is_help() -> None:
    assert make().stdout == make("help").stdout != ""


@needs_make
@pytest.mark.parametrize("what", words("BENCH"))
def test_what_chooses_the_benchmark(what: str) -> None:
    assert (ROOT / "benchmarks" / f"{what}.py").is_file()
    assert would_run("bench", f"WHAT={what}", "ARGS=--quick").endswith(f"benchmarks/{what}.py --quick\n")


@needs_make
def test_without_what_it_is_the_first_word() -> None:
    assert would_run("bench") == would_run("bench", "WHAT=compare")
    assert would_run("chaos") == would_run("chaos", "WHAT=run")
    assert would_run("generate") == would_run("generate", "WHAT=text")


@needs_make
@pytest.mark.parametrize("target", ["bench", "chaos", "generate"])
def test_another_word_is_an_error_that_names_all_before_anything_is_installed(target: str) -> None:
    variable = {"bench": "BENCH", "chaos": "CHAOS", "generate": "GENERATED"}[target]
    refused = make("--dry-run", "--assume-new=pyproject.toml", target, "WHAT=nothing")
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert f"WHAT is one of: {' '.join(words(variable))}." in refused.stderr


# ------------------------------------------------------------------ hooks and workflow


@needs_make
def test_the_hooks_run_what_make_check_runs_from_the_projects_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert all(hook["language"] == "system" for hook in hooks)
    ran = [hook["entry"].removesuffix(" --force-exclude") for hook in hooks]
    assert ran == [check.removesuffix(" --check") for check in would_run("check").splitlines()]


def test_the_workflow_runs_everything_on_one_python_and_the_fast_tests_on_the_others() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    jobs = workflow["jobs"]["python"]["strategy"]["matrix"]["include"]
    ran = {job["python"]: job["run"] for job in jobs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    allowed = SpecifierSet(project["requires-python"])
    assert list(ran) == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]
    assert list(ran.values()) == [".ci/run", *["make test-fast"] * (len(ran) - 1)]


# ------------------------------------------------------------------ the fast tests, and the longest


@pytest.mark.parametrize("names", [sorted(FAST), LONGEST], ids=["fast", "longest"])
def test_every_file_that_is_listed_is_there_once(names: Sequence[str]) -> None:
    assert [name for name in names if len(list((ROOT / "tests").rglob(name))) != 1] == []
