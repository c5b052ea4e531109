"""Memory and communication of a training step on several GPUs, computed from shapes."""

from .plan import STRATEGIES, Plan, plan_memory

__all__ = ["STRATEGIES", "Plan", "plan_memory"]
