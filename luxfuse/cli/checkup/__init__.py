"""The checks of ``luxfuse doctor``: each looks at one thing and says what it found, and what to do about it."""
