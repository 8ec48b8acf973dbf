"""What langgraph.json names: LangGraph Server enters it once for each of its event loops."""

from glasspoint import get_checkpointer

__all__ = ["get_checkpointer"]
