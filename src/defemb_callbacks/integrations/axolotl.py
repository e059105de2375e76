"""A plugin for axolotl, which is driven by a YAML file.

```yaml
plugins:
  - defemb_callbacks.integrations.axolotl.DefinitionEMBPlugin
defemb: # optional: arguments of DefinitionEMBCallback
  blend: 0.3
```
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from defemb_callbacks.callbacks import DefinitionEMBCallback

# This module is imported by axolotl only, which requires pydantic.
BasePlugin: Any = import_module("axolotl.integrations.base").BasePlugin
BaseModel: Any = import_module("pydantic").BaseModel


class DefinitionEMBArgs(BaseModel):
    """Entries of the YAML file that belong to the plugin.

    Attributes:
        defemb: Arguments of `DefinitionEMBCallback`.
    """

    defemb: dict[str, Any] | None = None


class DefinitionEMBPlugin(BasePlugin):
    """Adds `DefinitionEMBCallback` to the Trainer of axolotl."""

    def get_input_args(self) -> str:
        """Return the name of the class that validates the entries of the YAML file."""
        return f"{__name__}.{DefinitionEMBArgs.__name__}"

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[DefinitionEMBCallback]:
        """Return the callback, before the Trainer is created.

        Args:
            cfg: Configuration of axolotl.
            model: Unused; the Trainer passes its model to the callback.
        """
        return [DefinitionEMBCallback(**dict(cfg.defemb or {}))]
