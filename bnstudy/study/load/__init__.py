"""Records of a study, read from disk, and tables and pairs made from them."""
