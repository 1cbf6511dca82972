"""lm-evaluation-harness (extra `eval`), run in process over an engine. Nothing is appended to what the model writes, and
nothing but the stop texts that a task asks for is cut from it."""
