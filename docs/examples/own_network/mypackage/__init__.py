"""A network and data of your own."""
