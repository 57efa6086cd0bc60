"""The HTTP server: the OpenAI interface over an AsyncEngine, metrics, and one small page."""
