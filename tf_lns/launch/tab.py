"""The TensorBoard tab, in a way that cannot keep TensorBoard from starting."""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin


class EnergyTabLoader(base_plugin.TBLoader):
    """Loads `tf_lns.tensorboard.plugin.EnergyPlugin`."""

    def load(self, context: base_plugin.TBContext) -> Any:
        """The plugin; None, with a line in the log, where tf_lns cannot be imported."""
        try:
            from tf_lns.tensorboard.plugin import EnergyPlugin
        except ImportError as error:  # ops for another TensorFlow, for one
            logging.getLogger("tensorboard").warning("No LNS ENERGY tab: %s", error)
            return None
        return EnergyPlugin(context)
