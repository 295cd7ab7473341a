"""The zoo, one family a file. `create_model` and `list_models` are in `registry`."""
