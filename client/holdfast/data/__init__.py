"""Data sets that are lists of files: counted once, fixed, read in an order of their own, wherever they lie."""
