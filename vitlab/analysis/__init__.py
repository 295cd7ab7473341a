"""Pure functions of a model: what it costs and what it looks at."""
