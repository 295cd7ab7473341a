"""Metrics in numpy, from counts and per-image records that do not depend on batching.

A metric has two parts. The first function turns images into counts (integers, which may be added up
in any order) or into one record per image (to be put in the order of the images). The second
function turns the sum or the table into named numbers. No number is ever NaN: an undefined metric
is left out of the result.
"""
