"""The page to play with (extra `web`): Gradio, offline, on this machine alone."""
