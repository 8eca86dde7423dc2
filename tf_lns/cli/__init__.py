"""The command line `tf-lns`: one small module per command.

Nothing here imports TensorFlow until a model is loaded; see `library.py`.
"""

from tf_lns.cli.app import main

__all__ = ["main"]
