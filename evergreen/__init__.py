"""Evergreen keeps a deployed Qwen-class language model fresh: learn, measure, take back."""

__version__ = "0.1.0"
