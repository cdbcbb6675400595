"""See `agent_sdk`."""
