"""The repository: its metadata, declared dependencies, and no trace of the machine it was written on."""

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
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # packages whose import name differs


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


def test_python_and_dependencies_have_lower_bounds_only(setup_cfg, core, extras):
    assert setup_cfg["options"]["python_requires"] == ">=3.10"
    for requirement in [*core, *(r for requirements in extras.values() for r in requirements)]:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators <= {">=", "!="}, f"{requirement} has an upper bound"


def test_extras_refer_to_existing_extras(setup_cfg, extras):
    for requirements in extras.values():
        for requirement in requirements:
            if requirement.name == setup_cfg["metadata"]["name"]:
                assert requirement.extras <= set(extras)


def test_constraints_pin_torch_only(core):
    pinned = {Requirement(line).name for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"}
    assert pinned == {"torch"}
    assert {str(r.specifier) for r in core if r.name == "torch"} == {">=2.6"}


def _third_party_imports(node: ast.AST, optional: bool = False) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether it is optional) for each import; optional inside a function, `try` or `if`."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    for name in (name.partition(".")[0] for name in names):
        if name not in sys.stdlib_module_names and name != PACKAGE.name:
            yield canonicalize_name(DISTRIBUTIONS.get(name, name)), optional
    optional = optional or isinstance(node, ast.FunctionDef | ast.Try | ast.If)
    for child in ast.iter_child_nodes(node):
        yield from _third_party_imports(child, optional)


def test_every_imported_package_is_declared(core, extras):
    required = {canonicalize_name(requirement.name) for requirement in core}
    declared = required | {canonicalize_name(r.name) for requirements in extras.values() for r in requirements}
    for module in MODULES:
        for name, optional in _third_party_imports(ast.parse(module.read_text(encoding="utf-8"))):
            assert name in (declared if optional else required), f"{module.relative_to(ROOT)} imports {name}"


def test_extras_named_in_messages_and_readme_exist(extras):
    for path in [*MODULES, ROOT / "README.md"]:
        for names in re.findall(r"defemb[-_]callbacks\[([^\]\n]+)\]", path.read_text(encoding="utf-8")):
            named = {name.strip() for name in names.split(",")}
            assert named <= set(extras), f"{path.name} names {sorted(named - set(extras))}"


def test_changelog_has_a_section_for_this_version(setup_cfg):
    heading = rf"^## \[{re.escape(setup_cfg['metadata']['version'])}\]"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_console_script_and_type_marker_exist(setup_cfg):
    scripts = setup_cfg["options.entry_points"]["console_scripts"].strip()
    command, module, function = re.fullmatch(r"(\S+) = (\S+):(\S+)", scripts).groups()
    assert command == "defemb"
    assert callable(getattr(importlib.import_module(module), function))
    assert (PACKAGE / "py.typed").is_file()


# A character class of one character keeps each pattern from matching itself.
TRACES_OF_A_MACHINE = {
    "host of a package registry": re.compile(
        r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|anaconda[.]org|file:[/]{3}"
    ),
    "absolute path": re.compile(r"(?<![\w./])[/](?:home|root|Users|work|opt|mnt)[/]\w"),
}


@pytest.fixture(scope="module")
def repository_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    # Includes new files that are not yet tracked.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", TRACES_OF_A_MACHINE)
def test_no_file_names_a_registry_or_an_absolute_path(repository_files, what):
    assert Path(__file__).resolve() in repository_files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in repository_files
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if TRACES_OF_A_MACHINE[what].search(line)
    ]
    assert not found, f"{what} in\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("host of a package registry", "--index-url https://" + "pypi" + ".org/simple"),
        ("host of a package registry", "url = file:" + "///mirror"),
        ("absolute path", 'open("' + "/ho" + 'me/mary/data")'),
    ],
)
def test_patterns_match_paths_and_hosts_but_not_urls(what, line):
    assert TRACES_OF_A_MACHINE[what].search(line)
    assert not TRACES_OF_A_MACHINE[what].search("see https://arxiv.org/abs/2408.01308 and https://x.org/home/page")


def test_the_version_is_the_same_in_the_citation(setup_cfg):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [setup_cfg["metadata"]["version"]]
    assert re.findall(r"^repository-code: (.*)$", citation, re.MULTILINE) == [setup_cfg["metadata"]["url"]]


def test_the_lowest_versions_are_those_of_setup_cfg(core, extras):
    lowest = importlib.import_module("lowest")
    lines = lowest.pinned((ROOT / "setup.cfg").read_text(encoding="utf-8"))
    bounded = [*core, *(requirement for extra in lowest.EXTRAS for requirement in extras[extra])]
    assert lines == [str(requirement).replace(">=", "==") for requirement in bounded]
    assert {"torch==2.6", "transformers==5.0", "peft==0.19"} <= set(lines)


def test_continuous_integration_has_each_python_of_the_classifiers(setup_cfg):
    classifiers = set(re.findall(r"Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    [matrix] = re.findall(r"python-version: \[(.*)\]", workflow)
    assert set(re.findall(r"[\d.]+", matrix)) == classifiers
    assert min(classifiers, key=lambda name: int(name[2:])) == "3.10"
