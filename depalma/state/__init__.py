"""The replicated state: pure values, pure functions (see DESIGN.md)."""
