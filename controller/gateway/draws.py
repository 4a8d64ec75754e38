"""The gateway's random draws, apart from Python's global generator, which a program may seed."""

import random

DRAWS = random.Random()
