"""Runs programs that a model wrote, each in a sandbox of its own. No JAX.

`run.check` gives the verdict of tests on a program. The tests run in one sandbox and the program in another: all that
the program can do is to answer the tests' calls with values. It sees neither the tests nor the verdict.
"""
