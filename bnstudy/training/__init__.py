"""One cell of a study: built, trained, recorded."""
