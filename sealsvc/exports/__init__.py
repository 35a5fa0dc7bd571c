"""Exports: a sealed file as a block device (docs/exports.md).

An export is a holder like any other, and a client of the service only: a process of its own, which
lives on when the service ends. Nothing outside of this package imports from it but the command
line (`sealctl export`) and the API.
"""
