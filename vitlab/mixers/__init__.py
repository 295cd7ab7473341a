"""Token mixers: one published mechanism a file, constructed from explicit arguments, (b, h, w, c) -> (b, h, w, c)."""
