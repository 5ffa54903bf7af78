"""Protocols that train many models and compare them: shifted splits, few-shot transfer, each in a folder of its own. The parts
they share are here: cells of a grid, intervals, pictures.
"""
