"""rlreason: reinforcement learning on reasoning, from a pretrained model to an honest learning curve."""

__version__ = "0.1.0"
