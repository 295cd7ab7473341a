"""The zoo, one family per file. `create_model` and `list_models` are in `registry`."""
