"""LlamaDuo: move a task from a cloud LLM to a small model of your own, unattended, and prove that it worked."""

__version__ = "0.1.0"
