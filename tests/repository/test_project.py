"""What the repository promises about itself: its metadata, its imports, and that nothing of one machine is in it."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "defemb_callbacks"
MODULES = sorted(PACKAGE.rglob("*.py"))
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # whose modules have another name


def _requirements(lines: str) -> list[Requirement]:
    return [Requirement(line) for line in lines.strip().splitlines()]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="module")
def core(setup_cfg) -> list[Requirement]:
    return _requirements(setup_cfg["options"]["install_requires"])


@pytest.fixture(scope="module")
def extras(setup_cfg) -> dict[str, list[Requirement]]:
    return {name: _requirements(lines) for name, lines in setup_cfg["options.extras_require"].items()}


def _imports(node: ast.AST, optional: bool = False) -> Iterator[tuple[str, bool]]:
    """(top-level module, is it optional) for each absolute import; optional inside a function, ``try`` or ``if``."""
    if isinstance(node, ast.Import):
        yield from ((alias.name.partition(".")[0], optional) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield node.module.partition(".")[0], optional
    optional = optional or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try | ast.If)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, optional)


def test_python_and_dependencies_have_lower_bounds_only(setup_cfg, core, extras):
    assert setup_cfg["options"]["python_requires"] == ">=3.10"
    for requirement in [*core, *(r for requirements in extras.values() for r in requirements)]:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators <= {">=", "!="}, f"{requirement} is pinned from above"


def test_extras_refer_to_extras_that_exist(setup_cfg, extras):
    for requirements in extras.values():
        for requirement in requirements:
            if requirement.name == setup_cfg["metadata"]["name"]:
                assert requirement.extras <= set(extras)


def test_constraints_stay_out_of_the_metadata(core):
    pinned = {Requirement(line).name for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"}
    assert pinned == {"torch"}
    assert {str(r.specifier) for r in core if r.name == "torch"} == {">=2.6"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_import_is_declared(module, core, extras):
    always = {canonicalize_name(requirement.name) for requirement in core}
    anywhere = always | {canonicalize_name(r.name) for requirements in extras.values() for r in requirements}
    for name, optional in _imports(ast.parse(module.read_text(encoding="utf-8"))):
        if name not in sys.stdlib_module_names:
            declared = anywhere if optional else always
            needed = canonicalize_name(DISTRIBUTIONS.get(name, name))
            assert name == PACKAGE.name or needed in declared, f"{module.name} imports {name}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", [("torch", False)]),
        ("from wn import x", [("wn", False)]),
        ("from .rows import x", []),
        ("def f():\n    import wn", [("wn", True)]),
        ("try:\n    import wn\nexcept ImportError:\n    pass", [("wn", True)]),
        ("class A:\n    import wn", [("wn", False)]),
    ],
)
def test_the_walk_over_imports_sees(source, expected):
    assert list(_imports(ast.parse(source))) == expected


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_library_does_not_print(module):
    calls = [node for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_extras_that_we_tell_users_to_install_exist(extras):
    for path in [*MODULES, ROOT / "README.md"]:
        for names in re.findall(r"defemb[-_]callbacks\[([^\]\n]+)\]", path.read_text(encoding="utf-8")):
            named = {name.strip() for name in names.split(",")}
            assert named <= set(extras), f"{path.name} names {sorted(named - set(extras))}"


def test_changelog_knows_this_version(setup_cfg):
    version = setup_cfg["metadata"]["version"]
    assert re.search(
        rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_console_script_and_types_are_there(setup_cfg):
    command, target = re.fullmatch(
        r"(\S+) = (\S+)", setup_cfg["options.entry_points"]["console_scripts"].strip()
    ).groups()
    module, function = target.split(":")
    assert command == "defemb"
    assert callable(getattr(importlib.import_module(module), function))
    assert (PACKAGE / "py.typed").is_file()


# A class of one character keeps each pattern from matching itself.
OF_ONE_MACHINE = {
    "a registry's host": re.compile(
        r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|anaconda[.]org|file:[/]{3}"
    ),
    "somebody's folder": re.compile(r"(?<![\w./])[/](?:home|root|Users|work|opt|mnt)[/]\w"),
}


@pytest.fixture(scope="module")
def repository_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    # What is about to be added counts as well.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", OF_ONE_MACHINE)
def test_nothing_of_one_machine_is_in_the_repository(repository_files, what):
    assert Path(__file__).resolve() in repository_files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in repository_files
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if OF_ONE_MACHINE[what].search(line)
    ]
    assert not found, f"{what} in\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a registry's host", "--index-url https://" + "pypi" + ".org/simple"),
        ("a registry's host", "url = file:" + "///mirror"),
        ("somebody's folder", 'open("' + "/ho" + 'me/mary/data")'),
    ],
)
def test_the_search_for_machines_finds(what, line):
    assert OF_ONE_MACHINE[what].search(line)
    assert not OF_ONE_MACHINE[what].search("see https://arxiv.org/abs/2408.01308 and https://x.org/home/page")
