"""Figures: from tables of numbers to plotly figures.

Owns how things look, in one place (`style`), and computes nothing that anybody would quote: numbers come from stats and
probes. It must not know of models, folders or notebooks. plotly is imported where a figure is made, so that importing
this room costs nothing.
"""
