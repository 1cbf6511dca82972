"""lm-evaluation-harness (extra `eval`), run in process over an engine. Nothing is appended to what the model writes,
and nothing is cut from it but what follows a stop text that the task asks for."""
