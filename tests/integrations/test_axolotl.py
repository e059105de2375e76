"""The plugin for axolotl, with stand-ins for its plugin base class and its configuration."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

from defemb_callbacks import DefinitionEMBCallback
from tiny import tiny_glossary

NAME = "defemb_callbacks.integrations.axolotl"


class Config(dict):
    """As axolotl's `DictDefault`: a missing entry is `None`."""

    __getattr__ = dict.get


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("pydantic")
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    module = importlib.import_module(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)
    return module.DefinitionEMBPlugin()


def test_the_trainer_gets_the_callback(plugin, trainer) -> None:
    [callback] = plugin.add_callbacks_pre_trainer(Config(defemb={"definitions": tiny_glossary(), "blend": 0.3}), None)
    assert type(callback) is DefinitionEMBCallback
    assert callback.config.blend == 0.3
    trainer(callback)
    assert callback.report.rebuilt == 66


def test_all_settings_have_defaults(plugin) -> None:
    [callback] = plugin.add_callbacks_pre_trainer(Config(), None)
    assert callback.definitions == "wordnet"


def test_the_entries_of_the_yaml_file_are_validated(plugin) -> None:
    module, _, name = plugin.get_input_args().rpartition(".")
    arguments = getattr(importlib.import_module(module), name)
    assert arguments().defemb is None
    assert arguments(defemb={"blend": 0.3}).defemb == {"blend": 0.3}
    with pytest.raises(ValueError, match="dict"):
        arguments(defemb=3)
