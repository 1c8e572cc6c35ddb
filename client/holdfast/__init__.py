"""holdfast: training jobs that finish, whatever dies under them."""

__version__ = "0.1.0"
