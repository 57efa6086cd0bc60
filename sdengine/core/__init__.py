"""Core data: configurations, parameters, outputs. Knows errors and kernels' data, and nothing
above itself.
"""
