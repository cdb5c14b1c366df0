"""The built-in world: its renderer, its judge, and the programs that train and measure the built-in models.

It imports costars, and costars never imports it.
"""

from costars.threads import bound_spinning

bound_spinning()  # its programs import torch next
