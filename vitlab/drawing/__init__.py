"""Pictures for reports, drawn with Pillow."""
