"""The site builds without a warning, and what the pages name is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

FOLDERS = ("benchmarks", "docs", "dq_deploy", "examples", "kernels", "tests")


@pytest.fixture(scope="module")
def pages(repository):
    """Markdown files that people read first, by their path; decisions are not edited afterwards."""
    paths = [repository / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    paths += [path for path in (repository / "docs").rglob("*.md") if not path.name[:4].isdigit()]
    return {path: path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.skipif(find_spec("material") is None, reason="needs the extra docs: pip install 'dq-deploy[docs]'")
def test_the_site_builds_without_a_warning_and_fetches_nothing(repository, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=repository,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout + done.stderr
    built = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(built) > 20
    for path, html in built.items():
        assert not re.findall(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="https?://', html), path
    functions = (tmp_path / "api" / "functions.html").read_text(encoding="utf-8")
    for name in ("load_model", "quantize", "export", "verify", "benchmark", "open_engine", "save_record"):
        assert re.search(rf'<h3 id="[\w.]*\.{name}"', functions), name


def test_links_to_files_lead_somewhere(pages):
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path}: {target}"


def test_paths_named_on_the_pages_exist(pages, repository):
    for path, text in pages.items():
        for named in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text):
            assert (repository / named).exists(), f"{path}: {named}"


def test_modules_named_on_the_pages_exist(pages, repository):
    for path, text in pages.items():
        for module in re.findall(r"python -m ((?:benchmarks|dq_kernels|dq_deploy)[\w.]+)", text):
            root = repository / "kernels" if module.startswith("dq_kernels") else repository
            file = root / module.replace(".", "/")
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), f"{path}: {module}"


def test_every_page_is_in_the_navigation_and_every_decision_in_its_list(repository):
    text = (repository / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"])))
    docs = repository / "docs"
    there = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    decisions = {path.name for path in (docs / "decisions").glob("0*.md")}
    assert listed == there - {f"decisions/{name}" for name in decisions}
    index = (docs / "decisions" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\d{4}[\w-]+\.md)\)", index)) == decisions


def test_each_command_is_on_the_first_page_of_the_site(repository):
    scripts = re.findall(r"^(dq-\w+) = ", (repository / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    index = (repository / "docs" / "index.md").read_text(encoding="utf-8")
    assert scripts
    assert not [name for name in scripts if f"`{name}`" not in index]


def test_changelog_and_status_are_of_this_version(pages, repository):
    from dq_deploy import __version__

    assert re.findall(r"^## \[([\d.]+)\]", pages[repository / "CHANGELOG.md"], re.MULTILINE)[0] == __version__
    assert f"version {__version__}" in pages[repository / "docs" / "status.md"]
