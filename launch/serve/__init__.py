"""An HTTP server with OpenAI's routes over one engine (docs/guides/serving.md)."""
