"""Metrics in numpy, from counts and per-image records that do not depend on how images were batched.

A metric has two parts: a function that turns images into counts (integers, to be added up in any
order) or into one record per image (to be put in the order of the images), and a function that turns
the sum or the table into named numbers. No number is ever NaN: where a metric is undefined, its name is
left out of the result.
"""
