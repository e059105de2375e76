"""What the site adds to its pages when it is built: tests folded away, and the settings and commands of the code."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

from typer.testing import CliRunner

from defemb_callbacks.cli import app
from defemb_callbacks.cli.models import Session
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.constructor_config import ConstructorConfig

CONFIGS = {config.__name__: config for config in (DefinitionEMBConfig, ConstructorConfig)}


def folded_tests(markdown: str) -> str:
    """Fold the cells of each table whose last column names tests."""
    lines, folding = [], False
    for line in markdown.split("\n"):
        if line.startswith("|"):
            *cells, last = line.strip("|").split("|")
            if last.strip().startswith("test") and "test_" not in last.partition(",")[0]:
                folding = True  # the header of such a table
            elif folding and "test_" in last:
                names = re.sub(r"`([^`]+)`", lambda match: f"<code>{html.escape(match[1])}</code>", last.strip())
                last = f" <details class='test'><summary>test</summary>{names}</details> "
            line = f"|{'|'.join([*cells, last])}|"
        else:
            folding = False
        lines.append(line)
    return "\n".join(lines)


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def settings(name: str) -> str:
    """List the fields of a config with default and meaning."""
    return "\n\n".join(
        f"### `{field.name}`\n\n*Default:* `{_default(field)!r}`. {field.metadata['help']}"
        for field in fields(CONFIGS[name])
    )


def commands() -> str:
    """The help of each command."""
    runner = CliRunner()
    parts = []
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        result = runner.invoke(app, [name, "--help"], prog_name="defemb", obj=Session(), catch_exceptions=False)
        parts.append(f"## `defemb {name}`\n\n```text\n{result.output.strip()}\n```")
    return "\n\n".join(parts)


def reasons(markdown: str) -> str:
    """Shorten the titles of code blocks that the tests do not run to the reason: "Needs a script of yours"."""
    return re.sub(r' title="Not run by the tests: (\w)', lambda match: f' title="{match[1].upper()}', markdown)


def breakable(page: str) -> str:
    """Let the names in the cells of tables break between their parts, where the screen is narrow."""

    def parts(code: re.Match[str]) -> str:
        return re.sub(r"([/_.(=]|[a-z0-9](?=[A-Z]))(?=[^<])", r"\1<wbr>", code[0])

    def cell(found: re.Match[str]) -> str:
        text = re.sub(r"(?<=<code>)[^<]+", parts, found[0])
        return re.sub(r"_(?=\w[^<>]*<)", "_<wbr>", text)  # in other text, not in attributes

    return re.sub(r"<td.*?</td>", cell, page, flags=re.DOTALL)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the marks `<!-- settings NAME -->` and `<!-- commands -->`, titles of code, and tests."""
    if page.file.src_uri == "compatibility.md":
        return folded_tests(markdown)
    generated: dict[str, Callable[[re.Match[str]], str]] = {
        r"<!-- settings (\w+) -->": lambda match: settings(match[1]),
        r"<!-- commands -->": lambda match: commands(),
    }
    for pattern, make in generated.items():
        markdown = re.sub(pattern, make, markdown)
    return reasons(markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Change the finished pages; the search has their words before."""
    return breakable(output)
