"""Evergreen keeps a deployed Qwen-class language model fresh: it learns, measures what was forgotten, and takes back."""

__version__ = "0.1.0"
