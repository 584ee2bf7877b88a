"""The mini detector: one small network that reads everything there is to know of a rendered scene."""
