"""What does normalization do to a network's representations?"""

__version__ = "0.1.0"
