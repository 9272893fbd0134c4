"""Statistics of paired differences and ranks: arrays in, arrays out."""
