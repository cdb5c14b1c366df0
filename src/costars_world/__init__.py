"""The built-in world: its renderer, its judge, and the programs that train and measure the built-in models.

It imports costars, and costars never imports it.
"""
