"""Protocols that train many models and compare them: shifted splits, few-shot transfer, each in a folder of its own. They share
the cells of a grid, which are here.
"""
