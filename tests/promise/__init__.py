"""A fuzzer against the promise: no block under a live seal moves, whatever anybody does.

`python -m tests.promise --help`; docs/fuzzing.md tells how it works.
"""
