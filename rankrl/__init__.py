"""rankrl: tiny LoRA adapters, reliable in reasoning RL."""

__version__ = "0.1.0"
